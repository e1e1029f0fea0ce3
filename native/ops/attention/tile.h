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

}  // namespace pluralign::attention_detail
