// Gated activation on the GPU, one thread to an element.
#include "cuda/context.h"

namespace pluralign::cuda {
namespace {

constexpr int kThreads = 256;

__device__ inline float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

template <class T>
__global__ void swiglu_kernel(T* act, const T* gate_up, int64_t count, int64_t width) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t at = i / width * 2 * width + i % width;
  const float gate = load(gate_up[at]);
  store(act + i, gate * sigmoid(gate) * load(gate_up[at + width]));
}

template <class T>
__global__ void swiglu_backward_kernel(float* dgate_up, const float* dact, const T* gate_up, int64_t count, int64_t width) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const int64_t at = i / width * 2 * width + i % width;
  const float gate = load(gate_up[at]), up = load(gate_up[at + width]), s = sigmoid(gate), d = dact[i];
  dgate_up[at] = d * up * s * (1.f + gate * (1.f - s));
  dgate_up[at + width] = d * gate * s;
}

}  // namespace

void swiglu(Context& context, const device::SwigluCall& c) {
  const int64_t n = c.rows * c.width;
  if (n <= 0) return;
  const dim3 grid = blocks(ceil_div(n, kThreads));
  if (c.storage == kF32) PLURALIGN_LAUNCH(swiglu_kernel, grid, kThreads, 0, context.stream, static_cast<float*>(c.act), static_cast<const float*>(c.gate_up), n, c.width);
  else PLURALIGN_LAUNCH(swiglu_kernel, grid, kThreads, 0, context.stream, static_cast<bf16*>(c.act), static_cast<const bf16*>(c.gate_up), n, c.width);
  context.check("swiglu");
}

void swiglu_backward(Context& context, const device::SwigluCall& c) {
  const int64_t n = c.rows * c.width;
  if (n <= 0) return;
  const dim3 grid = blocks(ceil_div(n, kThreads));
  if (c.storage == kF32) PLURALIGN_LAUNCH(swiglu_backward_kernel, grid, kThreads, 0, context.stream, c.dgate_up, c.dact, static_cast<const float*>(c.gate_up), n, c.width);
  else PLURALIGN_LAUNCH(swiglu_backward_kernel, grid, kThreads, 0, context.stream, c.dgate_up, c.dact, static_cast<const bf16*>(c.gate_up), n, c.width);
  context.check("swiglu");
}

}  // namespace pluralign::cuda
