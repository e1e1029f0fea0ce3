// Causal attention of rows that continue sequences whose keys and values are held in panels, as the products read them: a
// decoding step packs nothing but its own rows. Numbers do not depend on how a sequence is cut into calls, to the bit.
#pragma once
#include "bf16.h"
#include "ops/gemm/bf16.h"

namespace pluralign {

// Keys and values of one layer of one sequence; of key/value head h at h times the bytes that CachedLayout gives.
// float32: keys [capacity / nr][head_dim][nr], values [head_dim / nr, rounded up][capacity][nr].
// bfloat16: keys as the right operand [capacity × head_dim] of a product, values as [head_dim × capacity] (ops/gemm/bf16.h).
struct CachedSequence {
  int64_t row, rows, prefix;  // query rows, and positions that are held already
  char *keys, *values;
  int64_t capacity;  // a multiple of CachedLayout::multiple
};

// How keys and values lie: in bfloat16 where the model computes in it and the instruction set multiplies it, so that a step
// reads half the memory; else in float32.
struct CachedLayout {
  CachedLayout(const Kernels& kernels, int storage, int64_t head_dim)
      : bfloat16(kernels.multiply_bf16 && storage == kBf16), nr(kernels.nr), width(head_dim), multiple(bfloat16 ? kBf16K : nr) {}

  int64_t key_bytes(int64_t capacity) const { return bfloat16 ? bf16_panels(capacity, width) * 2 : width * capacity * 4; }
  int64_t value_bytes(int64_t capacity) const { return value_panels() * value_panel_bytes(capacity); }
  int64_t value_panels() const { return bfloat16 ? (width + kBf16Panel - 1) / kBf16Panel : (width + nr - 1) / nr; }
  int64_t value_panel_bytes(int64_t positions) const { return bfloat16 ? bf16_panel(positions) * 2 : positions * nr * 4; }

  bool bfloat16;
  int64_t nr, width, multiple;
};

// Takes the rows' own keys and values (at row + key_offset, row + value_offset of `qkv`) into the panels, then attends.
// qkv: row r, head h of the queries at qkv + r * stride + h * head_dim. out [rows, heads · head_dim] in `storage`.
struct CachedAttention {
  AttentionShape shape;
  const float* qkv;
  int64_t stride, key_offset, value_offset;
  int storage;
  void* out;
};
void attention_cached(Context& context, const CachedAttention& call, const std::vector<CachedSequence>& sequences);

// One key/value head of one sequence, on one thread. `next`: the keys of the task that comes after it (null: none), asked for
// in time.
struct CachedTask {
  const CachedSequence& sequence;
  int64_t head;
  const char* next;
  int64_t next_bytes;
};
void attend_cached_bf16(Context& context, const CachedAttention& call, const CachedTask& task, int thread);

// Asks for memory that is needed soon, as much of it as caches take: no step finds a sequence near.
inline void expect(const char* from, int64_t bytes) {
  constexpr int64_t most = 1 << 16;
  for (int64_t i = 0; i < std::min(bytes, most); i += 64) __builtin_prefetch(from + i, 0, 2);
}

}  // namespace pluralign
