// Rotary positions on the GPU: a warp takes one head of one row; its lanes take pairs (i, i + half), which rotate together.
#include "cuda/context.h"

namespace pluralign::cuda {
namespace {

constexpr int kHeads = 4;           // of a block
constexpr int64_t kChunk = 64;      // rows whose part of a norm's gradient is summed by one warp

struct Shape {
  int64_t rows, heads, kv_heads, head_dim;
  float eps;
  const float *q_norm, *k_norm, *table;
  const int32_t* positions;

  __device__ int64_t width() const { return (heads + 2 * kv_heads) * head_dim; }
  __device__ const float* norm(int64_t head) const { return head < heads ? q_norm : head < heads + kv_heads ? k_norm : nullptr; }
};

template <class T>
__device__ inline float head_rstd(const T* x, int64_t n, float eps) {
  double squares = 0;
  for (int64_t i = int(threadIdx.x) % kWarp; i < n; i += kWarp) squares += double(load(x[i])) * load(x[i]);
  return float(1 / sqrt(warp_sum(squares) / double(n) + double(eps)));
}

template <class T>
__global__ void __launch_bounds__(kHeads* kWarp) rope_kernel(Shape s, float* out, const T* raw) {
  const int64_t all = s.heads + 2 * s.kv_heads, index = int64_t(blockIdx.x) * kHeads + threadIdx.x / kWarp, half = s.head_dim / 2;
  if (index >= s.rows * all) return;  // a whole warp
  const int64_t row = index / all, head = index % all, at = row * s.width() + head * s.head_dim;
  const int lane = int(threadIdx.x) % kWarp;
  if (head >= s.heads + s.kv_heads) {
    for (int64_t i = lane; i < s.head_dim; i += kWarp) out[at + i] = load(raw[at + i]);
    return;
  }
  const float* weight = s.norm(head);
  const float r = weight ? head_rstd(raw + at, s.head_dim, s.eps) : 1.f;
  const float* turn = s.table + int64_t(s.positions[row]) * s.head_dim;
  for (int64_t i = lane; i < half; i += kWarp) {
    float a = load(raw[at + i]), b = load(raw[at + half + i]);
    if (weight) {
      a = a * r * weight[i];
      b = b * r * weight[half + i];
    }
    out[at + i] = a * turn[i] - b * turn[half + i];
    out[at + half + i] = b * turn[i] + a * turn[half + i];
  }
}

template <class T>
__global__ void __launch_bounds__(kHeads* kWarp) rope_backward_kernel(Shape s, float* d, const T* raw) {
  const int64_t all = s.heads + s.kv_heads, index = int64_t(blockIdx.x) * kHeads + threadIdx.x / kWarp, half = s.head_dim / 2;
  if (index >= s.rows * all) return;
  const int64_t row = index / all, head = index % all, at = row * s.width() + head * s.head_dim;
  const int lane = int(threadIdx.x) % kWarp;
  const float* turn = s.table + int64_t(s.positions[row]) * s.head_dim;
  const float* weight = s.norm(head);
  double dot = 0;
  for (int64_t i = lane; i < half; i += kWarp) {
    const float a = d[at + i], b = d[at + half + i];
    const float da = a * turn[i] + b * turn[half + i], db = b * turn[i] - a * turn[half + i];
    d[at + i] = da;
    d[at + half + i] = db;
    if (weight) dot += double(da) * weight[i] * load(raw[at + i]) + double(db) * weight[half + i] * load(raw[at + half + i]);
  }
  if (!weight) return;
  const float r = head_rstd(raw + at, s.head_dim, s.eps), shift = float(warp_sum(dot) / double(s.head_dim)) * r * r * r;
  for (int64_t i = lane; i < half; i += kWarp) {  // the elements that this lane wrote above
    d[at + i] = d[at + i] * weight[i] * r - load(raw[at + i]) * shift;
    d[at + half + i] = d[at + half + i] * weight[half + i] * r - load(raw[at + half + i]) * shift;
  }
}

// Gradient of a norm's weight over kChunk rows and `count` heads from `first` on, while d is still that of the rotated head:
// partial [chunks × head_dim]. One warp; each lane keeps its own columns in shared memory.
template <class T>
__global__ void __launch_bounds__(kWarp) rope_weight_kernel(Shape s, float* partial, const float* d, const T* raw, int64_t first, int64_t count) {
  SharedMemory shared;
  float* sums = shared.take<float>(s.head_dim);
  const int64_t half = s.head_dim / 2, r0 = int64_t(blockIdx.x) * kChunk, r1 = r0 + kChunk < s.rows ? r0 + kChunk : s.rows;
  for (int64_t i = threadIdx.x; i < half; i += kWarp) sums[i] = sums[half + i] = 0;
  for (int64_t row = r0; row < r1; ++row) {
    const float* turn = s.table + int64_t(s.positions[row]) * s.head_dim;
    for (int64_t head = first; head < first + count; ++head) {
      const int64_t at = row * s.width() + head * s.head_dim;
      const float r = head_rstd(raw + at, s.head_dim, s.eps);
      for (int64_t i = threadIdx.x; i < half; i += kWarp) {
        const float a = d[at + i], b = d[at + half + i];
        sums[i] += (a * turn[i] + b * turn[half + i]) * load(raw[at + i]) * r;
        sums[half + i] += (b * turn[i] - a * turn[half + i]) * load(raw[at + half + i]) * r;
      }
    }
  }
  for (int64_t i = threadIdx.x; i < half; i += kWarp) {
    partial[blockIdx.x * s.head_dim + i] = sums[i];
    partial[blockIdx.x * s.head_dim + half + i] = sums[half + i];
  }
}

__global__ void add_partial_kernel(float* to, const float* partial, int64_t chunks, int64_t width) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= width) return;
  float sum = 0;
  for (int64_t c = 0; c < chunks; ++c) sum += partial[c * width + i];
  to[i] += sum;
}

Shape shape_of(const device::RopeCall& c) {
  return {c.plan->host.rows, c.heads, c.kv_heads, c.head_dim, c.eps, c.q_norm, c.k_norm, c.table, c.plan->on_device.positions};
}

template <class T>
void back(Context& context, const device::RopeCall& c, const T* raw) {
  const Shape s = shape_of(c);
  const int64_t chunks = ceil_div(s.rows, kChunk);
  const auto weight = [&](float* into, int64_t first, int64_t count) {
    if (!into) return;
    float* partial = context.scratch<float>(kSlotA, chunks * s.head_dim);
    PLURALIGN_LAUNCH((rope_weight_kernel<T>), blocks(chunks), kWarp, SharedMemory::bytes<float>(s.head_dim), context.stream, s, partial, c.out, raw, first, count);
    PLURALIGN_LAUNCH(add_partial_kernel, blocks(ceil_div(s.head_dim, 128)), 128, 0, context.stream, into, partial, chunks, s.head_dim);
  };
  weight(c.dq_norm, 0, c.heads);
  weight(c.dk_norm, c.heads, c.kv_heads);
  PLURALIGN_LAUNCH((rope_backward_kernel<T>), blocks(ceil_div(s.rows * (s.heads + s.kv_heads), kHeads)), kHeads * kWarp, 0, context.stream, s, c.out, raw);
}

}  // namespace

void rope(Context& context, const device::RopeCall& c) {
  const Shape s = shape_of(c);
  if (s.rows <= 0) return;
  const dim3 grid = blocks(ceil_div(s.rows * (s.heads + 2 * s.kv_heads), kHeads));
  if (c.storage == kF32) PLURALIGN_LAUNCH(rope_kernel, grid, kHeads * kWarp, 0, context.stream, s, c.out, static_cast<const float*>(c.raw));
  else PLURALIGN_LAUNCH(rope_kernel, grid, kHeads * kWarp, 0, context.stream, s, c.out, static_cast<const bf16*>(c.raw));
  context.check("rope");
}

void rope_backward(Context& context, const device::RopeCall& c) {
  if (c.plan->host.rows <= 0) return;
  if (c.storage == kF32) back(context, c, static_cast<const float*>(c.raw));
  else back(context, c, static_cast<const bf16*>(c.raw));
  context.check("rope");
}

}  // namespace pluralign::cuda
