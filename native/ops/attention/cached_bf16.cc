// Steps over keys and values in bfloat16: the products of bf16.cc, whose numbers they repeat (but where it has kernels for
// narrow heads, which add up in another order).
#include "cached.h"
#include "tile.h"

namespace pluralign {
using namespace attention_detail;
namespace {

constexpr int64_t kQueries = 32;

struct Step {
  Step(Context& context, const CachedAttention& call_, const CachedTask& task, int thread)
      : kernels(context.kernels), slots(context.local[size_t(thread)].slot), call(call_), shape(call_.shape), c(task.sequence), head(task.head),
        width(shape.head_dim), group(shape.heads / shape.kv_heads), length(c.prefix + c.rows), ld(round_up(length, kBf16K)),
        narrow(bf16_panel(width)), deep(bf16_panel(c.capacity)), layout(kernels, call_.storage, width),
        keys(reinterpret_cast<bf16*>(c.keys + head * layout.key_bytes(c.capacity))),
        values(reinterpret_cast<bf16*>(c.values + head * layout.value_bytes(c.capacity))) {}

  // The rows' own keys and values. Panels are products' operands whole: what stands in them behind the last position or
  // behind the width is zero, or never read.
  void take() const {
    bf16* row = slots[4].as<bf16>(width);
    for (int64_t i = 0; i < c.rows; ++i) {
      const int64_t t = c.prefix + i;
      const float* from = call.qkv + (c.row + i) * call.stride + head * width;
      bf16* key_panel = keys + t / kBf16Panel * narrow;
      if (t % kBf16Panel == 0) std::fill_n(key_panel, narrow, bf16{});
      kernels.round_rows(row, 0, from + call.key_offset, 0, 1, width, nullptr);
      for (int64_t d = 0; d < width; ++d) key_panel[(d / 2 * kBf16Panel + t % kBf16Panel) * 2 + d % 2] = row[d];
      kernels.round_rows(row, 0, from + call.value_offset, 0, 1, width, nullptr);
      for (int64_t d = 0; d < width; d += kBf16Panel) {
        bf16* panel = values + d / kBf16Panel * deep;
        if (t % kBf16K == 0) std::fill_n(panel + t * kBf16Panel, kBf16K * kBf16Panel, bf16{});
        bf16* pairs = panel + t / 2 * 2 * kBf16Panel + t % 2;
        for (int64_t j = 0; j < std::min(kBf16Panel, width - d); ++j) pairs[j * 2] = row[d + j];
      }
    }
  }

  void multiply(int64_t m, int64_t n, const Bf16Block::Term& term, float* to, int64_t ldc) const {
    kernels.multiply_bf16({m, n, &term, 1, to, DType::f32, ldc, 1.f, nullptr, false, slots[13].as<float>(round_up(m, kBf16Rows) * 32)});
  }

  // m rows of queries, `apart` floats from one to the next: head by head of one position, or position by position of one head.
  void attend(const float* q, int64_t apart, int64_t m, int64_t position, bool heads, bf16* out, int64_t ldo) const {
    bf16* queries = slots[4].as<bf16>(bf16_panels(kQueries, width));
    bf16* left = slots[5].as<bf16>(bf16_panels(kQueries, ld));
    float* scores = slots[6].as<float>(kQueries * ld);
    float* sums = slots[7].as<float>(kQueries * width);
    float inverse[kQueries];
    // A multiple of 32, so that lanes keep their place in the sequence.
    const int64_t first = shape.window > 0 ? std::max<int64_t>(0, position - shape.window + 1) / kBf16K * kBf16K : 0;
    const int64_t n = position + (heads ? 1 : m) - first, seen = position + 1 - first, block = bf16_panel(n);
    kernels.pack_bf16[0](queries, q, DType::f32, m, width, apart, 1, 1.f);
    multiply(m, n, {queries, keys + first / kBf16Panel * narrow, narrow, narrow, width, 0, m}, scores, ld);
    if (!heads) kernels.softmax_bf16({scores, ld, m, seen, shape.window, n, shape.scale}, left, inverse);
    else
      for (int64_t j = 0; j < m; ++j)
        kernels.softmax_bf16({scores + j * ld, ld, 1, seen, shape.window, n, shape.scale}, left + j / kBf16Panel * block + j % kBf16Panel * kBf16K, inverse + j);
    multiply(m, width, {left, values + first * kBf16Panel, block, deep, n, 0, m}, sums, width);
    kernels.round_rows(out, ldo, sums, width, m, width, inverse);
  }

  const Kernels& kernels;
  Buffer* slots;
  const CachedAttention& call;
  const AttentionShape& shape;
  const CachedSequence& c;
  const int64_t head, width, group, length, ld, narrow, deep;
  const CachedLayout layout;
  bf16 *keys, *values;
};

}  // namespace

void attend_cached_bf16(Context& context, const CachedAttention& call, const CachedTask& task, int thread) {
  const Step step(context, call, task, thread);
  const CachedSequence& c = task.sequence;
  for (int64_t p = 0; p < step.layout.value_panels(); ++p) expect(reinterpret_cast<const char*>(step.values + p * step.deep), step.length * kBf16Panel * 2);
  step.take();
  const auto queries = [&](int64_t row, int64_t h) { return call.qkv + row * call.stride + h * step.width; };
  const auto out = [&](int64_t row, int64_t h) { return static_cast<bf16*>(call.out) + (row * step.shape.heads + h) * step.width; };
  const int64_t first = task.head * step.group, end = first + step.group;
  if (c.rows == 1) {
    // Heads that read the same keys are the rows of one product.
    for (int64_t h = first; h < end; h += kQueries) step.attend(queries(c.row, h), step.width, std::min(kQueries, end - h), c.prefix, true, out(c.row, h), step.width);
  } else {
    for (int64_t begin = 0; begin < c.rows; begin += kQueries)
      for (int64_t h = first; h < end; ++h)
        step.attend(queries(c.row + begin, h), call.stride, std::min(kQueries, c.rows - begin), c.prefix + begin, false, out(c.row + begin, h), step.shape.heads * step.width);
  }
  if (task.next) expect(task.next, task.next_bytes);
}

}  // namespace pluralign
