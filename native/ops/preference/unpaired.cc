#include <algorithm>

#include "math.h"
#include "preference.h"

namespace pluralign::preference {

double unpaired_loss(const Unpaired& data, UnpairedLoss type, const UnpairedOptions& o, double* row_losses,
                     double* d_logps) {
  const double scale = inverse_or_zero(normaliser_or_sum(o.normaliser, data.weights, data.rows));
  double total = 0;
  for (int64_t i = 0; i < data.rows; ++i) {
    const double sign = data.labels[i] ? 1 : -1, lambda = data.labels[i] ? o.desirable : o.undesirable;
    const double rho = data.logps[i] - data.ref_logps[i], w = weight_at(data.weights, i);
    double loss, slope;  // of the margin sign · (β(ρ − baseline)), larger is better
    if (type == UnpairedLoss::bco) {
      const double x = sign * (o.beta * rho - o.baseline);
      loss = -log_sigmoid(x);
      slope = -sigmoid(-x);
    } else {
      const double x = sign * o.beta * (type == UnpairedLoss::kto ? rho - o.baseline : rho);
      loss = sigmoid(-x);
      slope = -sigmoid(x) * sigmoid(-x);
    }
    row_losses[i] = lambda * loss;
    d_logps[i] = scale * w * lambda * slope * sign * o.beta;
    total += w * row_losses[i];
  }
  return total * scale;
}

double sft_loss(int64_t rows, const double* logps, const double* tokens, const double* weights, double token_normaliser,
                double* row_losses, double* d_logps) {
  double count = token_normaliser;
  if (count == 0)
    for (int64_t i = 0; i < rows; ++i) count += weight_at(weights, i) * tokens[i];
  const double scale = inverse_or_zero(count);
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const double w = weight_at(weights, i);
    row_losses[i] = -logps[i] / std::max(1.0, tokens[i]);
    d_logps[i] = -w * scale;
    total -= w * logps[i];
  }
  return total * scale;
}

}  // namespace pluralign::preference
