// AdamW on the GPU, one thread to an element of a span, and the norms that gradients are clipped by.
#include "cuda/context.h"

namespace pluralign::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPiece = 1 << 15;  // elements whose squares one block adds up

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

struct Piece {
  int64_t begin, end;
};

__global__ void __launch_bounds__(kThreads) squares_kernel(double* sums, const float* g, const Piece* pieces) {
  SharedMemory shared;
  double* room = shared.take<double>(33);
  const Piece piece = pieces[blockIdx.x];
  double sum = 0;
  for (int64_t i = piece.begin + threadIdx.x; i < piece.end; i += kThreads) sum += double(g[i]) * double(g[i]);
  sum = block_sum(sum, room);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Pieces [first[i], first[i + 1]) of span i, in their order.
__global__ void add_pieces_kernel(double* sums, const double* pieces, const int64_t* first, int64_t spans) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= spans) return;
  double sum = 0;
  for (int64_t p = first[i]; p < first[i + 1]; ++p) sum += pieces[p];
  sums[i] = sum;
}

}  // namespace

void squared_norms(Context& context, const device::SquaredNormsCall& c) {
  if (c.spans <= 0) return;
  std::vector<Piece> pieces;
  std::vector<int64_t> first{0};
  for (int64_t i = 0; i < c.spans; ++i) {
    const int64_t end = c.host_span[2 * i + 1];
    for (int64_t at = c.host_span[2 * i]; at < end; at += kPiece) pieces.push_back({at, at + kPiece < end ? at + kPiece : end});
    first.push_back(int64_t(pieces.size()));
  }
  auto* where = context.scratch<Piece>(kSlotA, int64_t(pieces.size()));
  auto* sums = context.scratch<double>(kSlotB, int64_t(pieces.size()));
  auto* starts = context.scratch<int64_t>(kSlotC, int64_t(first.size()));
  context.upload(where, pieces.data(), pieces.size() * sizeof(Piece));
  context.upload(starts, first.data(), first.size() * sizeof(int64_t));
  if (!pieces.empty()) PLURALIGN_LAUNCH(squares_kernel, blocks(int64_t(pieces.size())), kThreads, SharedMemory::bytes<double>(33), context.stream, sums, c.g, where);
  PLURALIGN_LAUNCH(add_pieces_kernel, blocks(ceil_div(c.spans, kThreads)), kThreads, 0, context.stream, c.sums, sums, starts, c.spans);
  context.check("squared_norms");
}

void adamw(Context& context, const device::AdamWCall& c) {
  for (int64_t i = 0, next = 0; i < c.spans; i = next) {
    // Neighbours that step alike are one launch.
    for (next = i + 1; next < c.spans && c.host_span[2 * next] == c.host_span[2 * next - 1] && c.host_step[next] == c.host_step[i] && c.host_decay[next] == c.host_decay[i];) ++next;
    const int64_t at = c.host_span[2 * i], n = c.host_span[2 * next - 1] - at;
    if (n <= 0) continue;
    const double t = c.host_step[i];
    const Step s{float(c.learning_rate), float(c.beta1), float(c.beta2), float(1 - c.beta1), float(1 - c.beta2), float(c.eps), c.host_decay[i] ? float(c.weight_decay) : 0.f,
                 float(c.grad_scale), float(1 - std::pow(c.beta1, t)), float(std::sqrt(1 - std::pow(c.beta2, t)))};
    PLURALIGN_LAUNCH(adamw_kernel, blocks(ceil_div(n, kThreads)), kThreads, 0, context.stream, c.p + at, c.g + at, c.m + at, c.v + at, n, s);
  }
  context.check("adamw");
}

}  // namespace pluralign::cuda
