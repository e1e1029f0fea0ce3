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
  const Kernels& kr = context.kernels;
  const AttentionShape& shape = call.shape;
  const CachedSequence& c = task.sequence;
  const int64_t width = shape.head_dim, group = shape.heads / shape.kv_heads, mr = kr.mr, nr = kr.nr, head = task.head;
  const CachedLayout layout(kr, call.storage, width);
  const Tiling tiling(shape, kr);
  const int64_t length = c.prefix + c.rows, ld = round_up(length, std::max(nr, kPad));
  const AttentionSegment s{c.row, c.rows, c.prefix, {}};
  char* key_bytes = c.keys + head * layout.key_bytes(c.capacity);
  char* value_bytes = c.values + head * layout.value_bytes(c.capacity);
  for (int64_t p = 0; p < layout.value_panels(); ++p) expect(value_bytes + p * layout.value_panel_bytes(c.capacity), length * nr * 4);
  auto *keys = reinterpret_cast<float*>(key_bytes), *values = reinterpret_cast<float*>(value_bytes);
  take(call, task, nr, keys, values);
  const int64_t most = std::min(tiling.queries, c.rows) * group;
  auto& slot = context.local[size_t(thread)].slot;
  float* rows = slot[4].as<float>(most * width);
  float* left = slot[5].as<float>(round_up(most, mr) * std::max(width, ld));
  float* scores = slot[6].as<float>(most * ld);
  for (int64_t begin = 0; begin < c.rows; begin += tiling.queries) {
    const Tile t = tiling.at(s, begin);
    const int64_t m = (t.end - t.begin) * group, n = t.last - t.first;
    gather_rows(rows, call.qkv, call.stride, s.row, head * group, group, width, t);
    kr.pack_a(left, rows, DType::f32, m, width, width, 1);
    kr.panels(m, n, width, left, mr * width, keys + t.first * width, nr * width, scores, DType::f32, ld, 1.f, nullptr, false);
    if (t.end == c.rows && task.next) expect(task.next, task.next_bytes);
    for (int64_t i = 0; i < m; ++i) {
      const int64_t position = s.prefix + t.begin + i / group;
      kr.softmax_row(scores + i * ld, tiling.low(position) - t.first, position + 1 - t.first, n, shape.scale);
    }
    kr.pack_a(left, scores, DType::f32, m, n, ld, 1);
    kr.panels(m, width, n, left, mr * n, values + t.first * nr, nr * c.capacity, rows, DType::f32, width, 1.f, nullptr, false);
    for (int64_t i = 0; i < t.end - t.begin; ++i) {
      const int64_t at = ((s.row + t.begin + i) * shape.heads + head * group) * width;
      const float* from = rows + i * group * width;
      if (call.storage == kF32) std::memcpy(static_cast<float*>(call.out) + at, from, size_t(group * width) * 4);
      else kr.round_rows(static_cast<bf16*>(call.out) + at, 0, from, 0, 1, group * width, nullptr);
    }
  }
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
