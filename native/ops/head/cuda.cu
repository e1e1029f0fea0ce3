// The head on the GPU: chunks of logits by a dense product, folded into each row's running maximum and sums, or turned into
// gradients, before the next chunk takes their place.
#include <algorithm>

#include "cuda/context.h"
#include "ops/gemm/tile.cuh"

namespace pluralign::cuda {
namespace {

constexpr int kThreads = 512;
// Logits that exist at a time, and rows and columns of them; fixed, so that sums repeat.
constexpr int64_t kMostRows = 2048, kMostColumns = 16384, kMostLogits = int64_t(1) << 24;

template <class S, class T>
__global__ void convert_kernel(T* to, const S* from, int64_t count, int64_t width, int64_t ld) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) store(to + i, load(from[i / width * ld + i % width]));
}


// Folds columns [first, first + n) of a row's logits into partition {maximum, Σ e^(x - maximum)} and squares; a block takes a
// row. logps holds the target's logit until the last chunk.
__global__ void __launch_bounds__(kThreads) logsumexp_kernel(const float* logits, int64_t n, int64_t first, const int32_t* targets, float* logps, double* partition, double* squares,
                                                             float* squares_out, int last) {
  SharedMemory shared;
  float* tops = shared.take<float>(33);
  double *sums = shared.take<double>(33), *more = shared.take<double>(33);
  const int64_t row = blockIdx.x;
  const float* x = logits + row * n;
  float top = -INFINITY;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) top = fmaxf(top, x[i]);
  top = warp_max(top);
  if (threadIdx.x % kWarp == 0) tops[threadIdx.x / kWarp] = top;
  __syncthreads();
  for (int w = 0; w < kThreads / kWarp; ++w) top = fmaxf(top, tops[w]);
  const double was = first == 0 ? -INFINITY : partition[2 * row];
  const double maximum = was > double(top) ? was : double(top);
  const float base = maximum == -INFINITY ? 0.f : float(maximum);
  float sum = 0, square = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const float p = expf(x[i] - base);
    sum += p;
    square += p * p;
  }
  double total = block_sum(double(sum), sums), total_squares = block_sum(double(square), more);
  if (threadIdx.x > 0) return;
  if (first > 0) {
    const double shrink = exp(was - double(base));
    total += partition[2 * row + 1] * shrink;
    total_squares += squares[row] * shrink * shrink;
  }
  const int64_t target = targets[row] - first;
  const float hit = target >= 0 && target < n ? x[target] : first == 0 ? 0.f : logps[row];
  partition[2 * row] = maximum;
  partition[2 * row + 1] = total;
  squares[row] = total_squares;
  logps[row] = last ? float(double(hit) - (maximum + log(total))) : hit;
  if (last && squares_out) squares_out[row] = float(total_squares / (total * total));
}

constexpr int kEach = 8;  // columns of a thread
// gradient[v] = scale · dlogp ([v is the target] - e^(x - maximum) / sum); may take the logits' place.
template <class T>
__global__ void __launch_bounds__(kThreads) logits_gradient_kernel(T* gradient, const float* logits, int64_t n, int64_t first, const int32_t* targets, const float* dlogps, const double* partition,
                                                                   float scale) {
  const int64_t row = blockIdx.y, begin = int64_t(blockIdx.x) * kThreads * kEach + threadIdx.x, target = targets[row] - first;
  const float d = dlogps[row] * scale, factor = float(-double(d) / partition[2 * row + 1]), top = float(partition[2 * row]);
#pragma unroll
  for (int e = 0; e < kEach; ++e) {
    const int64_t i = begin + e * kThreads;
    if (i >= n) return;
    const float g = factor * expf(logits[row * n + i] - top);
    store(gradient + row * n + i, i == target ? g + d : g);
  }
}

struct Head {
  Context& context;
  const device::HeadCall& call;
  int64_t rows, width, vocabulary, block_rows, chunk;
  DType type;      // of operands
  size_t element;  // bytes of one in hidden
  float* logits;

  Head(Context& c, const device::HeadCall& h)
      : context(c), call(h), rows(h.hidden.rows), width(h.hidden.cols), vocabulary(h.weight.rows), block_rows(std::min(rows, kMostRows)),
        chunk(std::min({vocabulary, kMostColumns, kMostLogits / std::max<int64_t>(block_rows, 1)})), type(h.hidden.type), element(dtype_size(h.hidden.type)),
        logits(c.scratch<float>(kSlotA, block_rows * chunk)) {
    if ((type != DType::f32 && type != DType::bf16) || (h.weight.type != DType::f32 && h.weight.type != DType::bf16)) throw Failure(device::Status::unsupported, "the head takes float32 and bfloat16");
    if (rows > 0 && vocabulary <= 0) throw Failure(device::Status::bad_argument, "the head has no vocabulary");
  }
  const void* hidden(int64_t r0) const { return static_cast<const char*>(call.hidden.data) + size_t(r0 * call.hidden.ld) * element; }

  template <class S, class T>
  const void* converted(const S* from, int64_t n, Slot slot) const {
    T* to = context.scratch<T>(slot, n * width);
    PLURALIGN_LAUNCH((convert_kernel<S, T>), blocks(ceil_div(n * width, 256)), 256, 0, context.stream, to, from, n * width, width, call.weight.ld);
    return to;
  }
  // Weight rows [v0, v0 + n) in the type of hidden; ld: between them.
  const void* weight(int64_t v0, int64_t n, int64_t& ld) const {
    const char* from = static_cast<const char*>(call.weight.data) + size_t(v0 * call.weight.ld) * dtype_size(call.weight.type);
    ld = call.weight.ld;
    if (call.weight.type == type) return from;
    ld = width;
    return type == DType::bf16 ? converted<float, bf16>(reinterpret_cast<const float*>(from), n, kSlotD) : converted<bf16, float>(reinterpret_cast<const bf16*>(from), n, kSlotD);
  }
  // visit(first row, rows, first column, columns) with scale · hidden · weightᵀ of those in `logits`.
  template <class Visit>
  void each(Visit&& visit) const {
    for (int64_t r0 = 0; r0 < rows; r0 += block_rows)
      for (int64_t v0 = 0; v0 < vocabulary; v0 += chunk) {
        const int64_t m = std::min(block_rows, rows - r0), n = std::min(chunk, vocabulary - v0);
        int64_t ld;
        const void* w = weight(v0, n, ld);
        product(context, {m, n, width, hidden(r0), w, type, type, DType::f32, false, true, call.hidden.ld, ld, n, logits, call.scale, nullptr, false});
        visit(r0, m, v0, n, w, ld);
      }
  }
};

}  // namespace

void head(Context& context, const device::HeadCall& call) {
  if (call.hidden.rows <= 0) return;
  const Head h(context, call);
  double* squares = context.scratch<double>(kSlotC, h.rows);
  const int32_t* targets = call.plan->on_device.targets;
  h.each([&](int64_t r0, int64_t m, int64_t v0, int64_t n, const void*, int64_t) {
    PLURALIGN_LAUNCH(logsumexp_kernel, blocks(m), kThreads, SharedMemory::bytes<float>(33) + 2 * SharedMemory::bytes<double>(33), context.stream, h.logits, n, v0, targets + r0, call.logps + r0,
                     call.partition + 2 * r0, squares + r0, call.squares ? call.squares + r0 : nullptr, int(v0 + n == h.vocabulary));
  });
  context.check("the head");
}

void head_backward(Context& context, const device::HeadCall& call) {
  if (call.hidden.rows <= 0) return;
  const Head h(context, call);
  bf16* rounded = h.type == DType::bf16 ? context.scratch<bf16>(kSlotB, h.block_rows * h.chunk) : nullptr;
  const void* gradient = rounded ? static_cast<void*>(rounded) : h.logits;
  const int32_t* targets = call.plan->on_device.targets;
  h.each([&](int64_t r0, int64_t m, int64_t v0, int64_t n, const void* w, int64_t ld) {
    const dim3 grid(unsigned(ceil_div(n, kThreads * kEach)), unsigned(m));
    if (rounded)
      PLURALIGN_LAUNCH(logits_gradient_kernel, grid, kThreads, 0, context.stream, rounded, h.logits, n, v0, targets + r0, call.dlogps + r0, call.partition + 2 * r0, call.scale);
    else PLURALIGN_LAUNCH(logits_gradient_kernel, grid, kThreads, 0, context.stream, h.logits, h.logits, n, v0, targets + r0, call.dlogps + r0, call.partition + 2 * r0, call.scale);
    if (call.dhidden)
      product(context, {m, h.width, n, gradient, w, h.type, h.type, DType::f32, false, false, n, ld, h.width, call.dhidden + r0 * h.width, 1.f, nullptr, v0 > 0});
    if (call.dweight)
      product(context, {n, h.width, m, gradient, h.hidden(r0), h.type, h.type, DType::f32, true, false, n, call.hidden.ld, h.width, call.dweight + v0 * h.width, 1.f, nullptr, true});
  });
  context.check("gradients of the head");
}

}  // namespace pluralign::cuda
