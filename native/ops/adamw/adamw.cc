#include "adamw.h"

#include <cmath>

namespace pluralign {

AdamWStep adamw_step(double learning_rate, double beta1, double beta2, double eps, double weight_decay, double grad_scale, int64_t t) {
  return {float(learning_rate), float(beta1), float(beta2), float(1 - beta1), float(1 - beta2), float(eps), float(weight_decay), float(grad_scale),
          1.0 - std::pow(beta1, double(t)), 1.0 - std::pow(beta2, double(t))};
}

void adamw(Context& context, float* p, const float* g, float* m, float* v, int64_t n, const AdamWStep& step) {
  context.pool.ranges(n, 16384, [&](int64_t i, int64_t end, int) { context.kernels.adamw(p + i, g + i, m + i, v + i, end - i, step); });
}

}  // namespace pluralign
