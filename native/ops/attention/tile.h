// What the forward and the backward pass share: gathering a path, and the tiles of queries over it.
#pragma once
#include <algorithm>
#include <cstring>

#include "attention.h"

namespace pluralign::attention_detail {

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Columns are padded to this many floats: a whole number of vectors of any instruction set.
constexpr int64_t kPad = 16;

// Copies keys and values of one head along the path into [length × head_dim] each.
inline void gather(const AttentionSegment& s, int64_t head, int64_t width, float* keys, float* values) {
  for (const KeySpan& span : s.path)
    for (int64_t t = 0; t < span.count; ++t, keys += width, values += width) {
      std::memcpy(keys, span.k + t * span.stride + head * width, size_t(width) * 4);
      std::memcpy(values, span.v + t * span.stride + head * width, size_t(width) * 4);
    }
}

// Queries [begin, end) of a segment with all heads of one group: row i · group + j. Columns [first, last) are looked at.
struct Tile {
  int64_t begin, end, first, last;
};

struct Tiling {
  Tiling(const AttentionShape& shape, const Kernels& kernels)
      : window(shape.window), align(std::max<int64_t>(kernels.nr, kPad)), queries(std::max<int64_t>(1, 64 / (shape.heads / shape.kv_heads))) {}

  int64_t low(int64_t position) const { return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0; }
  Tile at(const AttentionSegment& s, int64_t begin) const {
    const int64_t end = std::min(s.rows, begin + queries);
    // A multiple of the panel width, so that lanes keep their place on the path.
    return {begin, end, low(s.prefix + begin) / align * align, s.prefix + end};
  }
  int64_t window, align, queries;
};

inline void gather_rows(float* dst, const float* src, int64_t stride, int64_t row, int64_t first_head, int64_t group, int64_t width, const Tile& t) {
  for (int64_t i = t.begin; i < t.end; ++i, dst += group * width)
    std::memcpy(dst, src + (row + i) * stride + first_head * width, size_t(group * width) * 4);
}

// Float32 attention of a segment's rows, all heads of one group, over keys and values in panels: keys [positions / nr][width][nr],
// values [width / nr][positions][nr] with `value_step` floats from one panel of columns to the next.
struct TiledAttention {
  const AttentionShape& shape;
  const AttentionSegment& s;
  int64_t head;
  const float *keys, *values;
  int64_t value_step;
  const float* q;
  int64_t stride;
  int storage;
  void* out;
};

// `scored` is called once the last tile has its scores. Uses the thread's slots 4 to 6.
template <class Scored>
void attend_tiles(Context& context, const TiledAttention& call, int thread, Scored&& scored) {
  const Kernels& kr = context.kernels;
  const AttentionShape& shape = call.shape;
  const AttentionSegment& s = call.s;
  const Tiling tiling(shape, kr);
  const int64_t width = shape.head_dim, group = shape.heads / shape.kv_heads, mr = kr.mr, nr = kr.nr;
  const int64_t ld = round_up(s.prefix + s.rows, std::max(nr, kPad)), most = std::min(tiling.queries, s.rows) * group;
  auto& slot = context.local[size_t(thread)].slot;
  float* rows = slot[4].as<float>(most * width);
  float* left = slot[5].as<float>(round_up(most, mr) * std::max(width, ld));
  float* scores = slot[6].as<float>(most * ld);
  for (int64_t begin = 0; begin < s.rows; begin += tiling.queries) {
    const Tile t = tiling.at(s, begin);
    const int64_t m = (t.end - t.begin) * group, n = t.last - t.first;
    gather_rows(rows, call.q, call.stride, s.row, call.head * group, group, width, t);
    kr.pack_a(left, rows, DType::f32, m, width, width, 1);
    kr.panels(m, n, width, left, mr * width, call.keys + t.first * width, nr * width, scores, DType::f32, ld, 1.f, nullptr, false);
    if (t.end == s.rows) scored();
    for (int64_t i = 0; i < m; ++i) {
      const int64_t position = s.prefix + t.begin + i / group;
      kr.softmax_row(scores + i * ld, tiling.low(position) - t.first, position + 1 - t.first, n, shape.scale);
    }
    kr.pack_a(left, scores, DType::f32, m, n, ld, 1);
    kr.panels(m, width, n, left, mr * n, call.values + t.first * nr, call.value_step, rows, DType::f32, width, 1.f, nullptr, false);
    for (int64_t i = 0; i < t.end - t.begin; ++i) {
      const int64_t at = ((s.row + t.begin + i) * shape.heads + call.head * group) * width;
      const float* from = rows + i * group * width;
      if (call.storage == kF32) std::memcpy(static_cast<float*>(call.out) + at, from, size_t(group * width) * 4);
      else kr.round_rows(static_cast<bf16*>(call.out) + at, 0, from, 0, 1, group * width, nullptr);
    }
  }
}

}  // namespace pluralign::attention_detail
