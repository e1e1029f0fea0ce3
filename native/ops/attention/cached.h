// Causal attention of rows that continue sequences whose keys and values are held in panels, as the products read them: a
// decoding step packs nothing but its own rows. Numbers are those of attention() over the whole sequence, to the bit,
// but where that multiplies in bfloat16 (see bf16.h): steps are bound by memory, and stay in float32.
#pragma once
#include "attention.h"

namespace pluralign {

// Keys and values of one layer of one sequence. Of key/value head h: keys [capacity / nr][head_dim][nr] at keys + h *
// key_size, values [head_dim / nr, rounded up][capacity][nr] at values + h * value_size; capacity is a multiple of nr.
struct CachedSequence {
  int64_t row, rows, prefix;  // query rows, and positions that are held already
  float *keys, *values;
  int64_t capacity;
};

inline int64_t cached_key_size(const AttentionShape& shape, const Kernels& kernels, int64_t capacity) { return shape.head_dim * capacity; }
inline int64_t cached_value_size(const AttentionShape& shape, const Kernels& kernels, int64_t capacity) {
  return (shape.head_dim + kernels.nr - 1) / kernels.nr * kernels.nr * capacity;
}

// Takes the rows' own keys and values (at row + key_offset, row + value_offset of `qkv`) into the panels, then attends.
// qkv: row r, head h of the queries at qkv + r * stride + h * head_dim. out [rows, heads · head_dim] in `storage`.
void attention_cached(Context& context, const AttentionShape& shape, const std::vector<CachedSequence>& sequences, const float* qkv,
                      int64_t stride, int64_t key_offset, int64_t value_offset, int storage, void* out);

}  // namespace pluralign
