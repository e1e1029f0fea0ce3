#include "cached.h"

#include "tile.h"

namespace pluralign {
using namespace attention_detail;

namespace {

// The rows' keys and values, each into its place.
void take(const CachedAttention& call, const CachedTask& task, int64_t nr, float* keys, float* values) {
  const CachedSequence& c = task.sequence;
  const int64_t width = call.shape.head_dim;
  for (int64_t i = 0; i < c.rows; ++i) {
    const int64_t t = c.prefix + i;
    const float* row = call.qkv + (c.row + i) * call.stride + task.head * width;
    float* column = keys + t / nr * nr * width + t % nr;
    for (int64_t d = 0; d < width; ++d) column[d * nr] = row[call.key_offset + d];
    for (int64_t d = 0; d < width; d += nr)
      std::memcpy(values + (d / nr * c.capacity + t) * nr, row + call.value_offset + d, size_t(std::min(nr, width - d)) * 4);
  }
}

void attend(Context& context, const CachedAttention& call, const CachedTask& task, int thread) {
  const AttentionShape& shape = call.shape;
  const CachedSequence& c = task.sequence;
  const CachedLayout layout(context.kernels, call.storage, shape.head_dim);
  char* key_bytes = c.keys + task.head * layout.key_bytes(c.capacity);
  char* value_bytes = c.values + task.head * layout.value_bytes(c.capacity);
  for (int64_t p = 0; p < layout.value_panels(); ++p) expect(value_bytes + p * layout.value_panel_bytes(c.capacity), layout.value_panel_bytes(c.prefix + c.rows));
  auto *keys = reinterpret_cast<float*>(key_bytes), *values = reinterpret_cast<float*>(value_bytes);
  take(call, task, layout.nr, keys, values);
  const AttentionSegment s{c.row, c.rows, c.prefix, {}};
  attend_tiles(context, {shape, s, task.head, keys, values, layout.nr * c.capacity, call.qkv, call.stride, call.storage, call.out}, thread, [&] {
    if (task.next) expect(task.next, task.next_bytes);
  });
}

}  // namespace

void attention_cached(Context& context, const CachedAttention& call, const std::vector<CachedSequence>& sequences) {
  const AttentionShape& shape = call.shape;
  const CachedLayout layout(context.kernels, call.storage, shape.head_dim);
  const int64_t tasks = int64_t(sequences.size()) * shape.kv_heads;
  const auto one = [&](int64_t i, int thread) {
    CachedTask task{sequences[size_t(i / shape.kv_heads)], i % shape.kv_heads, nullptr, 0};
    if (i + 1 < tasks) {
      const CachedSequence& next = sequences[size_t((i + 1) / shape.kv_heads)];
      task.next = next.keys + (i + 1) % shape.kv_heads * layout.key_bytes(next.capacity);
      task.next_bytes = layout.key_bytes((next.prefix + next.rows + layout.multiple - 1) / layout.multiple * layout.multiple);
    }
    if (layout.bfloat16) attend_cached_bf16(context, call, task, thread);
    else attend(context, call, task, thread);
  };
  // Waking the other threads takes longer than a short step of few sequences.
  int64_t work = 0;
  for (const CachedSequence& c : sequences) work += c.rows * (c.prefix + c.rows) * shape.heads * shape.head_dim;
  if (work < 100'000) for (int64_t i = 0; i < tasks; ++i) one(i, 0);
  else context.pool.run(tasks, one);
}

}  // namespace pluralign
