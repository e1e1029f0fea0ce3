#include "cached.h"

#include "tile.h"

namespace pluralign {
using namespace attention_detail;

namespace {

// Asks for memory that is needed soon, as much of it as caches take: no step finds a sequence near.
void expect(const float* from, int64_t n) {
  constexpr int64_t most = 1 << 14;
  for (int64_t i = 0; i < std::min(n, most); i += 16) __builtin_prefetch(from + i, 0, 2);
}

}  // namespace

void attention_cached(Context& context, const AttentionShape& shape, const std::vector<CachedSequence>& sequences, const float* qkv,
                      int64_t stride, int64_t key_offset, int64_t value_offset, int storage, void* out) {
  const Kernels& kr = context.kernels;
  const int64_t width = shape.head_dim, group = shape.heads / shape.kv_heads, mr = kr.mr, nr = kr.nr, value_panels = (width + nr - 1) / nr;
  const int64_t tasks = int64_t(sequences.size()) * shape.kv_heads;
  const Tiling tiling(shape, kr);
  const auto one = [&](int64_t task, int thread) {
    const CachedSequence& c = sequences[size_t(task / shape.kv_heads)];
    const int64_t head = task % shape.kv_heads, length = c.prefix + c.rows, ld = round_up(length, std::max(nr, kPad));
    const AttentionSegment s{c.row, c.rows, c.prefix, {}};
    float* keys = c.keys + head * cached_key_size(shape, kr, c.capacity);
    float* values = c.values + head * cached_value_size(shape, kr, c.capacity);
    for (int64_t p = 0; p < value_panels; ++p) expect(values + p * c.capacity * nr, length * nr);
    for (int64_t i = 0; i < c.rows; ++i) {
      const int64_t t = c.prefix + i;
      const float* row = qkv + (c.row + i) * stride + head * width;
      float* column = keys + t / nr * nr * width + t % nr;
      for (int64_t d = 0; d < width; ++d) column[d * nr] = row[key_offset + d];
      for (int64_t p = 0; p < value_panels; ++p)
        std::memcpy(values + (p * c.capacity + t) * nr, row + value_offset + p * nr, size_t(std::min(nr, width - p * nr)) * 4);
    }
    const int64_t most = std::min(tiling.queries, c.rows) * group;
    auto& slot = context.local[size_t(thread)].slot;
    float* rows = slot[4].as<float>(most * width);
    float* left = slot[5].as<float>(round_up(most, mr) * std::max(width, ld));
    float* scores = slot[6].as<float>(most * ld);
    for (int64_t begin = 0; begin < c.rows; begin += tiling.queries) {
      const Tile t = tiling.at(s, begin);
      const int64_t m = (t.end - t.begin) * group, n = t.last - t.first;
      gather_rows(rows, qkv, stride, s.row, head * group, group, width, t);
      kr.pack_a(left, rows, DType::f32, m, width, width, 1);
      kr.panels(m, n, width, left, mr * width, keys + t.first * width, nr * width, scores, DType::f32, ld, 1.f, nullptr, false);
      if (t.end == c.rows && task + 1 < tasks) {
        const CachedSequence& next = sequences[size_t((task + 1) / shape.kv_heads)];
        expect(next.keys + (task + 1) % shape.kv_heads * cached_key_size(shape, kr, next.capacity), (next.prefix + next.rows) * width);
      }
      for (int64_t i = 0; i < m; ++i) {
        const int64_t position = s.prefix + t.begin + i / group;
        kr.softmax_row(scores + i * ld, tiling.low(position) - t.first, position + 1 - t.first, n, shape.scale);
      }
      kr.pack_a(left, scores, DType::f32, m, n, ld, 1);
      kr.panels(m, width, n, left, mr * n, values + t.first * nr, nr * c.capacity, rows, DType::f32, width, 1.f, nullptr, false);
      for (int64_t i = 0; i < t.end - t.begin; ++i) {
        const int64_t at = ((s.row + t.begin + i) * shape.heads + head * group) * width;
        const float* from = rows + i * group * width;
        if (storage == kF32) std::memcpy(static_cast<float*>(out) + at, from, size_t(group * width) * 4);
        else
          for (int64_t j = 0; j < group * width; ++j) static_cast<bf16*>(out)[at + j] = to_bf16(from[j]);
      }
    }
  };
  // Waking the other threads takes longer than a short step of few sequences.
  int64_t work = 0;
  for (const CachedSequence& c : sequences) work += c.rows * (c.prefix + c.rows) * shape.heads * width;
  if (work < 100'000) for (int64_t i = 0; i < tasks; ++i) one(i, 0);
  else context.pool.run(tasks, one);
}

}  // namespace pluralign
