#include <algorithm>

#include "math.h"
#include "preference.h"

namespace pluralign::preference {
namespace {

struct Term {
  double loss, slope, parameter;  // l, dl/dd, dl/d log ν
};

double softplus(double x) { return -log_sigmoid(-x); }

// a = log ν > 0. P(win) = σ(d − a); P(tie) = (ν² − 1) σ(d − a) σ(−d − a).
Term rao_kupper(double d, double a, bool tied) {
  if (!tied) return {softplus(a - d), -sigmoid(a - d), sigmoid(a - d)};
  // log(ν² − 1) = 2a + log(1 − e^{−2a}) keeps its digits for any a.
  const double shrink = -std::expm1(-2 * a);
  return {softplus(a - d) + softplus(a + d) - 2 * a - std::log(shrink), sigmoid(a + d) - sigmoid(a - d),
          sigmoid(a - d) + sigmoid(a + d) - 2 / shrink};
}

// b = log ν. P(win) : P(loss) : P(tie) = 1 : e^{−d} : ν e^{−d/2}.
Term davidson(double d, double b, bool tied) {
  const double total = log_add(log_add(0, -d), b - d / 2);
  const double lost = std::exp(-d - total), tie = std::exp(b - d / 2 - total);
  if (!tied) return {total, -lost - tie / 2, tie};
  return {total - b + d / 2, 0.5 - lost - tie / 2, tie - 1};
}

}  // namespace

double tie_loss(int64_t rows, const double* differences, const uint8_t* tied, const double* weights, TieModel model, double nu,
                double normaliser, double* row_losses, double* d_differences, double* d_log_nu) {
  const double scale = inverse_or_zero(normaliser_or_sum(normaliser, weights, rows)), log_nu = std::log(nu);
  double total = 0, parameter = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const Term t = (model == TieModel::davidson ? davidson : rao_kupper)(differences[i], log_nu, tied[i] != 0);
    const double w = weight_at(weights, i);
    row_losses[i] = t.loss;
    d_differences[i] = scale * w * t.slope;
    total += w * t.loss;
    parameter += w * t.parameter;
  }
  *d_log_nu = scale * parameter;
  return scale * total;
}

}  // namespace pluralign::preference
