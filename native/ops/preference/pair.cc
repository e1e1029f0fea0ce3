#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "math.h"
#include "pair_terms.h"

namespace pluralign::preference {
namespace {

std::vector<int64_t> sorted_order(const std::vector<double>& values) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return values[a] < values[b]; });
  return order;
}

// Alignment via optimal transport (Melnyk et al. 2024): in one dimension the optimal coupling matches quantiles. Adds
// term_weight · loss to row_losses and the derivatives of Σ w_i l_i to the gradients (before 1/N).
void transport_term(const Pairs& p, const PairTerm& term, const PairOptions& o, const PairOutput& out) {
  const bool unpaired = term.type == PairLoss::aot_unpaired;
  std::vector<double> upper(p.rows), lower(p.rows);
  bool nan = false;
  for (int64_t i = 0; i < p.rows; ++i) {
    upper[i] = p.chosen[i] - (unpaired ? p.ref_chosen[i] : p.rejected[i]);
    lower[i] = unpaired ? p.rejected[i] - p.ref_rejected[i] : p.ref_chosen[i] - p.ref_rejected[i];
    nan = nan || std::isnan(upper[i]) || std::isnan(lower[i]);
  }
  if (nan) {  // NaN has no place in an order, so every row is affected
    const double bad = std::numeric_limits<double>::quiet_NaN();
    for (double* array : {out.row_losses, out.d_chosen, out.d_rejected}) std::fill_n(array, p.rows, bad);
    return;
  }
  const std::vector<int64_t> a = sorted_order(upper), b = sorted_order(lower);
  int64_t i = 0, j = 0;
  double left_a = p.rows ? weight_at(p.weights, a[0]) : 0, left_b = p.rows ? weight_at(p.weights, b[0]) : 0;
  while (i < p.rows && j < p.rows) {
    const double mass = std::min(left_a, left_b);
    if (mass > 0) {
      const int64_t row = a[i], other = b[j];
      double slope;
      const double loss = smoothed_log_loss(o.beta * (upper[row] - lower[other]), o.label_smoothing, &slope);
      const double g = term.weight * mass * o.beta * slope;
      out.row_losses[row] += term.weight * (mass / weight_at(p.weights, row)) * loss;
      out.d_chosen[row] += g;
      out.d_rejected[unpaired ? other : row] -= g;
    }
    left_a -= mass;
    left_b -= mass;
    if (left_a <= 0 && ++i < p.rows) left_a = weight_at(p.weights, a[i]);
    if (left_b <= 0 && ++j < p.rows) left_b = weight_at(p.weights, b[j]);
  }
}

PairRow row_at(const Pairs& p, int64_t i, const PairOptions& o, double nll_scale) {
  PairRow r;
  r.chosen = p.chosen[i];
  r.rejected = p.rejected[i];
  r.rho_chosen = r.chosen - (p.ref_chosen ? p.ref_chosen[i] : 0);
  r.rho_rejected = r.rejected - (p.ref_rejected ? p.ref_rejected[i] : 0);
  r.score_chosen = divergence_score(r.rho_chosen, o.divergence, o.divergence_alpha, &r.slope_chosen);
  r.score_rejected = divergence_score(r.rho_rejected, o.divergence, o.divergence_alpha, &r.slope_rejected);
  r.chosen_tokens = std::max(1.0, p.chosen_tokens[i]);
  r.rejected_tokens = std::max(1.0, p.rejected_tokens[i]);
  r.nll_scale = nll_scale;
  return r;
}

}  // namespace

double pair_loss(const Pairs& p, std::span<const PairTerm> terms, const PairOptions& o, const PairOutput& out) {
  const double normaliser = normaliser_or_sum(o.normaliser, p.weights, p.rows);
  const double scale = inverse_or_zero(normaliser);
  double tokens = o.token_normaliser;
  if (tokens == 0)
    for (int64_t i = 0; i < p.rows; ++i) tokens += weight_at(p.weights, i) * p.chosen_tokens[i];
  const double nll_scale = normaliser * inverse_or_zero(tokens);

  for (double* array : {out.row_losses, out.d_chosen, out.d_rejected}) std::fill_n(array, p.rows, 0.0);
  for (const PairTerm& term : terms)
    if (term.type == PairLoss::aot || term.type == PairLoss::aot_unpaired) transport_term(p, term, o, out);
  double total = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    const PairRow row = row_at(p, i, o, nll_scale);
    PairValue sum{0, 0, 0};
    for (const PairTerm& term : terms) {
      if (term.type == PairLoss::aot || term.type == PairLoss::aot_unpaired) continue;
      const PairValue v = pair_term(term.type, row, o);
      sum.loss += term.weight * v.loss;
      sum.d_chosen += term.weight * v.d_chosen;
      sum.d_rejected += term.weight * v.d_rejected;
    }
    const double w = weight_at(p.weights, i), factor = weight_at(p.factors, i);
    out.row_losses[i] += factor * sum.loss;
    out.d_chosen[i] = (out.d_chosen[i] + w * factor * sum.d_chosen) * scale;
    out.d_rejected[i] = (out.d_rejected[i] + w * factor * sum.d_rejected) * scale;
    total += w * out.row_losses[i];
  }
  return total * scale;
}

}  // namespace pluralign::preference
