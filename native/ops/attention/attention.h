// Causal attention over a forest of segments, grouped-query, with an optional sliding window.
#pragma once
#include <vector>

#include "ops/table.h"

namespace pluralign {

struct AttentionShape {
  int64_t heads, kv_heads, head_dim;
  float scale;     // 1 / sqrt(head_dim)
  int64_t window;  // keys at this distance or more are not seen; 0: all are
};

// Keys and values of one stretch of a path. Key t of head h is at k + t * stride + h * head_dim, its value at v + ….
struct KeySpan {
  const float* k;
  const float* v;
  int64_t stride, count;
  float *dk, *dv;  // gradients, laid out alike; unused in forward
};

// Queries that follow each other on one path: query i has position prefix + i and sees positions up to its own.
struct AttentionSegment {
  int64_t row;     // first query row
  int64_t rows;    // queries
  int64_t prefix;  // keys before the first query
  std::vector<KeySpan> path;  // root first; counts add up to prefix + rows
};

// q: row r, head h at q + r * stride + h * head_dim. out [rows, heads · head_dim] in `storage`.
// The sum over keys runs along the path, whatever the packing. Memory is linear in tokens. Where `storage` is bfloat16 and the
// instruction set multiplies in it, operands of products are rounded to it (see bf16.h).
void attention(Context& context, const AttentionShape& shape, const std::vector<AttentionSegment>& segments, const float* q,
               int64_t stride, int storage, void* out);

// Given dout [rows, heads · head_dim]: dq (same layout as q) is written; span gradients are added to. `storage`: of the forward
// pass. `trees` lists the segments that share keys: one thread takes one tree and key head, so gradients of shared keys add up
// in a fixed order.
void attention_backward(Context& context, const AttentionShape& shape, const std::vector<AttentionSegment>& segments,
                        const std::vector<std::vector<int>>& trees, const float* q, int64_t stride, int storage, const float* dout, float* dq);

// Plain loops in float64, float32 storage: the specification.
void attention_reference(const AttentionShape& shape, const std::vector<AttentionSegment>& segments, const float* q, int64_t stride,
                         float* out);

}  // namespace pluralign
