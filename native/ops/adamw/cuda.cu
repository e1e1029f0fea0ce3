// AdamW on the GPU, one thread to an element of a span.
#include "cuda/context.h"

namespace pluralign::cuda {
namespace {

constexpr int kThreads = 256;

struct Step {
  float learning_rate, beta1, beta2, rest1, rest2, eps, weight_decay, grad_scale;
  float correction1, root_correction2;
};

__global__ void adamw_kernel(float* p, const float* g, float* m, float* v, int64_t n, Step s) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float d = g[i] * s.grad_scale;
  m[i] = s.beta1 * m[i] + s.rest1 * d;
  v[i] = s.beta2 * v[i] + s.rest2 * d * d;
  p[i] = p[i] * (1.f - s.learning_rate * s.weight_decay) - s.learning_rate * (m[i] / s.correction1) / (sqrtf(v[i]) / s.root_correction2 + s.eps);
}

}  // namespace

void adamw(Context& context, const device::AdamWCall& c) {
  for (int64_t i = 0; i < c.spans; ++i) {
    const int64_t at = c.host_span[2 * i], n = c.host_span[2 * i + 1] - at;
    if (n <= 0) continue;
    const double t = c.host_step[i];
    const Step s{float(c.learning_rate), float(c.beta1), float(c.beta2), float(1 - c.beta1), float(1 - c.beta2), float(c.eps), c.host_decay[i] ? float(c.weight_decay) : 0.f,
                 float(c.grad_scale), float(1 - std::pow(c.beta1, t)), float(std::sqrt(1 - std::pow(c.beta2, t)))};
    PLURALIGN_LAUNCH(adamw_kernel, blocks(ceil_div(n, kThreads)), kThreads, 0, context.stream, c.p + at, c.g + at, c.m + at, c.v + at, n, s);
  }
  context.check("adamw");
}

}  // namespace pluralign::cuda
