#include "math.h"
#include "preference.h"

namespace pluralign::preference {

double reward_loss(int64_t rows, const double* chosen, const double* rejected, const double* margins, const double* weights,
                   double centring, double normaliser, double* row_losses, double* d_chosen, double* d_rejected) {
  const double scale = inverse_or_zero(normaliser_or_sum(normaliser, weights, rows));
  double total = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const double x = chosen[i] - rejected[i] - (margins ? margins[i] : 0), sum = chosen[i] + rejected[i];
    const double w = weight_at(weights, i), slope = -sigmoid(-x), centre = 2 * centring * sum;
    row_losses[i] = -log_sigmoid(x) + centring * sum * sum;
    d_chosen[i] = scale * w * (slope + centre);
    d_rejected[i] = scale * w * (-slope + centre);
    total += w * row_losses[i];
  }
  return total * scale;
}

}  // namespace pluralign::preference
