#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "math.h"
#include "preference.h"

namespace pluralign::preference {
namespace {

struct Group {
  int64_t size, ranked;
  const int32_t* ranking;
  std::vector<double> s, d;       // scores and derivatives, [size]
  std::vector<int64_t> position;  // place in the ranking, or `ranked` for those that were not ranked
};

// Plackett–Luce: each term is a softmax of the next item against all that are not ranked before it.
double plackett_luce(Group& g, int64_t terms) {
  // log Σ exp s over those not ranked before place k, built from the last place up.
  std::vector<double> remaining(g.ranked + 1, -std::numeric_limits<double>::infinity());
  for (int64_t j = 0; j < g.size; ++j)
    if (g.position[j] == g.ranked) remaining[g.ranked] = log_add(remaining[g.ranked], g.s[j]);
  for (int64_t k = g.ranked; k-- > 0;) remaining[k] = log_add(remaining[k + 1], g.s[g.ranking[k]]);
  double loss = 0;
  for (int64_t k = 0; k < terms; ++k) {
    loss += remaining[k] - g.s[g.ranking[k]];
    g.d[g.ranking[k]] -= 1;
    for (int64_t j = 0; j < g.size; ++j)
      if (g.position[j] >= k) g.d[j] += std::exp(g.s[j] - remaining[k]);
  }
  return loss;
}

// LiPO-λ (Liu et al. 2024): Σ_{ψ_i > ψ_j} Δ_ij log(1 + exp(−(s_i − s_j))), Δ_ij = |G_i − G_j| · |1/D(i) − 1/D(j)| with
// gain G = 2^ψ − 1 and discount D = log(1 + place by s); ψ falls by 1 from the best (ψ = ranked) to those not ranked (0).
// Δ is a constant for the gradient.
double lipo(Group& g) {
  std::vector<int64_t> order(g.size);
  std::iota(order.begin(), order.end(), 0);
  if (std::any_of(g.s.begin(), g.s.end(), [](double s) { return std::isnan(s); })) {
    std::fill(g.d.begin(), g.d.end(), std::nan(""));
    return std::nan("");
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return g.s[a] > g.s[b]; });
  std::vector<double> gain(g.size), discount(g.size);
  for (int64_t k = 0; k < g.size; ++k) discount[order[k]] = 1 / std::log(2.0 + static_cast<double>(k));
  for (int64_t j = 0; j < g.size; ++j) gain[j] = std::exp2(static_cast<double>(g.ranked - g.position[j])) - 1;
  double loss = 0;
  for (int64_t i = 0; i < g.size; ++i)
    for (int64_t j = 0; j < g.size; ++j) {
      if (g.position[i] >= g.position[j]) continue;
      const double lambda = (gain[i] - gain[j]) * std::fabs(discount[i] - discount[j]), x = g.s[i] - g.s[j];
      loss -= lambda * log_sigmoid(x);
      g.d[i] -= lambda * sigmoid(-x);
      g.d[j] += lambda * sigmoid(-x);
    }
  return loss;
}

}  // namespace

double ranking_loss(const Rankings& r, RankingLoss type, double beta, double normaliser, double* row_losses,
                    double* d_scores) {
  const double scale = inverse_or_zero(normaliser_or_sum(normaliser, r.weights, r.groups));
  double total = 0;
  Group g;
  for (int64_t i = 0; i < r.groups; ++i) {
    const int64_t start = r.offsets[i];
    g.size = r.offsets[i + 1] - start;
    g.ranking = r.ranking + r.ranking_offsets[i];
    g.ranked = r.ranking_offsets[i + 1] - r.ranking_offsets[i];
    g.s.resize(g.size);
    g.d.assign(g.size, 0.0);
    g.position.assign(g.size, g.ranked);
    for (int64_t j = 0; j < g.size; ++j) g.s[j] = beta * (r.scores[start + j] - (r.ref_scores ? r.ref_scores[start + j] : 0));
    for (int64_t k = 0; k < g.ranked; ++k) g.position[g.ranking[k]] = k;
    // The last term of a full ranking is a choice among one: exactly 0.
    const int64_t terms = g.ranked == g.size ? std::max<int64_t>(g.size - 1, 0) : g.ranked;
    const double loss = type == RankingLoss::lipo ? lipo(g)
                        : plackett_luce(g, type == RankingLoss::best ? std::min<int64_t>(terms, 1) : terms);
    const double w = r.weights ? r.weights[i] : 1;
    row_losses[i] = loss;
    for (int64_t j = 0; j < g.size; ++j) d_scores[start + j] = scale * w * beta * g.d[j];
    total += w * loss;
  }
  return total * scale;
}

}  // namespace pluralign::preference
