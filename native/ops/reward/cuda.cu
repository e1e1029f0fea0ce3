// Reward heads on the GPU: a warp takes the dot product of a readout; in the backward pass one thread takes a column through
// all readouts, as adapters may share a head.
#include "cuda/context.h"

namespace pluralign::cuda {
namespace {

constexpr int kWarps = 4;

template <class T>
__global__ void __launch_bounds__(kWarps* kWarp) reward_kernel(float* out, const T* hidden, const float* const* heads, const int32_t* adapters, int64_t readouts, int64_t width, int64_t ld) {
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  const int lane = int(threadIdx.x) % kWarp;
  if (i >= readouts) return;  // a whole warp
  const float* w = heads[adapters[i]];
  double sum = 0;
  for (int64_t j = lane; j < width; j += kWarp) sum += double(w[j]) * load(hidden[i * ld + j]);
  sum = warp_sum(sum);
  if (lane == 0) out[i] = float(sum);
}

template <class T>
__global__ void reward_backward_kernel(float* dhidden, float* const* dheads, const float* dout, const T* hidden, const float* const* heads, const int32_t* adapters, int64_t readouts,
                                       int64_t width, int64_t ld) {
  const int64_t j = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (j >= width) return;
  for (int64_t i = 0; i < readouts; ++i) {
    dhidden[i * width + j] = dout[i] * heads[adapters[i]][j];
    dheads[adapters[i]][j] += dout[i] * load(hidden[i * ld + j]);
  }
}

}  // namespace

void reward(Context& context, const device::RewardCall& c) {
  const int64_t n = c.plan->host.readouts;
  if (n <= 0) return;
  const dim3 grid = blocks(ceil_div(n, kWarps));
  if (c.hidden.type == DType::f32)
    PLURALIGN_LAUNCH(reward_kernel, grid, kWarps * kWarp, 0, context.stream, c.out, static_cast<const float*>(c.hidden.data), c.heads, c.readout_adapters, n, c.hidden.cols, c.hidden.ld);
  else
    PLURALIGN_LAUNCH(reward_kernel, grid, kWarps * kWarp, 0, context.stream, c.out, static_cast<const bf16*>(c.hidden.data), c.heads, c.readout_adapters, n, c.hidden.cols, c.hidden.ld);
  context.check("reward");
}

void reward_backward(Context& context, const device::RewardCall& c) {
  const int64_t n = c.plan->host.readouts, width = c.hidden.cols;
  if (n <= 0) return;
  const dim3 grid = blocks(ceil_div(width, 128));
  if (c.hidden.type == DType::f32)
    PLURALIGN_LAUNCH(reward_backward_kernel, grid, 128, 0, context.stream, c.dhidden, c.dheads, c.dout, static_cast<const float*>(c.hidden.data), c.heads, c.readout_adapters, n, width,
                     c.hidden.ld);
  else
    PLURALIGN_LAUNCH(reward_backward_kernel, grid, 128, 0, context.stream, c.dhidden, c.dheads, c.dout, static_cast<const bf16*>(c.hidden.data), c.heads, c.readout_adapters, n, width,
                     c.hidden.ld);
  context.check("reward");
}

}  // namespace pluralign::cuda
