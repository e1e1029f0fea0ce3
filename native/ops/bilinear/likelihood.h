// Likelihoods of single votes in float64: what the reference, rankings and ties share.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/bilinear/kernels.h"

namespace pluralign::bilinear {

struct PairTerms {
  double loss, slope, curvature;
};

// With x = r₁ − r₂ − margin and nu = 0: −log σ(x). With nu (Davidson 1970): P(1) ∝ e^{x/2}, P(2) ∝ e^{−x/2}, P(tie) ∝ nu.
static inline PairTerms pair_terms(double x, double nu, bool tie) {
  if (tie && !(nu > 0)) return {0, 0, 0};
  const double e = std::exp(-0.5 * std::abs(x)), square = e * e, rest = square + nu * e, whole = 1 + rest;
  const double normaliser = 0.5 * std::abs(x) + std::log1p(rest), slope = 0.5 * (x < 0 ? square - 1 : 1 - square) / whole;
  const double curvature = (square + 0.25 * nu * e * (1 + square)) / (whole * whole);
  if (tie) return {normaliser - std::log(nu), slope, curvature};
  // slope − ½ without its cancellation where x is large
  const double win = x < 0 ? slope - 0.5 : -(square + 0.5 * nu * e) / whole;
  return {x < 0 ? normaliser - 0.5 * x : std::log1p(rest), win, curvature};
}

// Plackett–Luce over n places, best first: Σ_{s < stages} [log Σ_{j ≥ s} e^{r_j} − r_s]; writes tails [n], log Σ_{j ≥ s} e^{r_j}.
static inline double ranking_loss(const double* r, int64_t n, int64_t stages, double* tails, double* slopes) {
  double top = -std::numeric_limits<double>::infinity(), sum = 0, loss = 0;
  for (int64_t s = n; s-- > 0;) {
    if (r[s] > top) {
      sum = sum * std::exp(top - r[s]) + 1;
      top = r[s];
    } else {
      sum += std::exp(r[s] - top);
    }
    tails[s] = top + std::log(sum);
    slopes[s] = 0;
  }
  for (int64_t s = 0; s < stages; ++s) {
    loss += tails[s] - r[s];
    slopes[s] -= 1;
    for (int64_t j = s; j < n; ++j) slopes[j] += std::exp(r[j] - tails[s]);
  }
  return loss;
}

struct VoteRange {
  int64_t start, places, stages;
};
static inline VoteRange vote_range(const Ballots& b, int64_t v) {
  if (!b.vote_start) return {2 * v, 2, b.stages ? b.stages[v] : 1};
  return {b.vote_start[v], b.vote_start[v + 1] - b.vote_start[v], b.stages ? b.stages[v] : 1};
}
static inline int64_t row_of_voter(const Ballots& b, int64_t u) { return b.voter_rows ? b.voter_rows[u] : u; }
static inline double weight_of(const Ballots& b, int64_t v) { return b.weights ? b.weights[v] : 1; }
static inline double margin_of(const Ballots& b, int64_t v) { return b.margins ? b.margins[v] : 0; }

}  // namespace pluralign::bilinear
