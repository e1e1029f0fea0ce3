#include "norm.h"

namespace pluralign {

void rmsnorm(Context& context, int storage, void* y, float* rstd, const float* x, const float* weight, int64_t rows, int64_t width, float eps) {
  const size_t element = storage == kF32 ? 4 : 2;
  context.pool.ranges(rows, 16, [&](int64_t r0, int64_t r1, int) {
    context.kernels.rmsnorm[storage](static_cast<char*>(y) + size_t(r0 * width) * element, rstd + r0, x + r0 * width, weight, r1 - r0, width, eps);
  });
}

void rmsnorm_backward(Context& context, float* dx, const float* dy, const float* x, const float* rstd, const float* weight,
                      int64_t rows, int64_t width, bool accumulate) {
  context.pool.ranges(rows, 16, [&](int64_t r0, int64_t r1, int) {
    context.kernels.rmsnorm_backward(dx + r0 * width, dy + r0 * width, x + r0 * width, rstd + r0, weight, r1 - r0, width, accumulate);
  });
}

void rmsnorm_backward_weight(Context& context, float* dweight, const float* dy, const float* x, const float* rstd, int64_t rows, int64_t width) {
  // Threads own columns, so the sum over rows keeps its order.
  context.pool.ranges(width, 64, [&](int64_t c0, int64_t c1, int) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = c0; c < c1; ++c) dweight[c] += dy[r * width + c] * x[r * width + c] * rstd[r];
  });
}

}  // namespace pluralign
