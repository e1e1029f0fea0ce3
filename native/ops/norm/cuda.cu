// Root-mean-square norm on the GPU: a warp takes a row, lanes stride along it.
#include "cuda/context.h"

namespace pluralign::cuda {
namespace {

constexpr int kRows = 8;  // of a block

template <class T>
__global__ void __launch_bounds__(kRows* kWarp) norm_kernel(T* y, float* rstd, const float* x, const float* weight, int64_t rows, int64_t width, float eps) {
  const int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / kWarp;
  const int lane = int(threadIdx.x) % kWarp;
  if (row >= rows) return;  // a whole warp
  const float* from = x + row * width;
  double squares = 0;
  for (int64_t i = lane; i < width; i += kWarp) squares += double(from[i]) * from[i];
  const float r = float(1 / sqrt(warp_sum(squares) / double(width) + double(eps)));
  if (lane == 0) rstd[row] = r;
  T* to = y + row * width;
  for (int64_t i = lane; i < width; i += kWarp) store(to + i, from[i] * r * weight[i]);
}

__global__ void __launch_bounds__(kRows* kWarp) norm_backward_kernel(float* dx, const float* dy, const float* x, const float* rstd, const float* weight, int64_t rows,
                                                                    int64_t width, int accumulate) {
  const int64_t row = int64_t(blockIdx.x) * kRows + threadIdx.x / kWarp;
  const int lane = int(threadIdx.x) % kWarp;
  if (row >= rows) return;
  const float *d = dy + row * width, *from = x + row * width;
  double dot = 0;
  for (int64_t i = lane; i < width; i += kWarp) dot += double(d[i] * weight[i]) * from[i];
  const float r = rstd[row], shift = float(warp_sum(dot) / double(width)) * r * r * r;
  float* to = dx + row * width;
  for (int64_t i = lane; i < width; i += kWarp) {
    const float value = d[i] * weight[i] * r - from[i] * shift;
    to[i] = accumulate ? to[i] + value : value;
  }
}

// One thread takes a column: rows add up in order.
__global__ void norm_weight_kernel(float* dweight, const float* dy, const float* x, const float* rstd, int64_t rows, int64_t width) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= width) return;
  float sum = 0;
  for (int64_t r = 0; r < rows; ++r) sum += dy[r * width + i] * x[r * width + i] * rstd[r];
  dweight[i] += sum;
}

}  // namespace

void norm(Context& context, const device::NormCall& c) {
  if (c.rows <= 0) return;
  const dim3 grid = blocks(ceil_div(c.rows, kRows));
  if (c.storage == kF32) PLURALIGN_LAUNCH(norm_kernel, grid, kRows * kWarp, 0, context.stream, static_cast<float*>(c.y), c.rstd, c.x, c.weight, c.rows, c.width, c.eps);
  else PLURALIGN_LAUNCH(norm_kernel, grid, kRows * kWarp, 0, context.stream, static_cast<bf16*>(c.y), c.rstd, c.x, c.weight, c.rows, c.width, c.eps);
  context.check("norm");
}

void norm_backward(Context& context, const device::NormBackwardCall& c) {
  if (c.rows <= 0) return;
  if (c.dweight) PLURALIGN_LAUNCH(norm_weight_kernel, blocks(ceil_div(c.width, 128)), 128, 0, context.stream, c.dweight, c.dy, c.x, c.rstd, c.rows, c.width);
  PLURALIGN_LAUNCH(norm_backward_kernel, blocks(ceil_div(c.rows, kRows)), kRows * kWarp, 0, context.stream, c.dx, c.dy, c.x, c.rstd, c.weight, c.rows, c.width, c.accumulate);
  context.check("norm");
}

}  // namespace pluralign::cuda
