// Low-rank products of adapters over ranges of rows: y += scale · (dropout(x) Aᵀ) coreᵀ Bᵀ (Hu et al. 2021). The core is
// what a user owns where A and B are shared: an r × r matrix, or a vector on the r coordinates.
#pragma once
#include "ops/gemm/gemm.h"

namespace pluralign {

struct LoraModule {
  const float* a;     // [r × in]
  const float* b;     // [out × r]
  const float* core;  // [core_rows × r], core_rows r (matrix), 1 (vector) or 0 (none)
  float *da, *db, *dcore;  // null where the factor is not trained
  int64_t r, core_rows;
  float scale, dropout;
};

struct LoraCall {
  const std::vector<LoraRange>& ranges;
  int64_t in, out;
  int storage;               // of x (and of y)
  const void* x;             // [rows × in]
  float* h;                  // [rows × h_stride], x Aᵀ kept for the backward pass
  int64_t h_stride;
  const uint64_t* row_keys;  // [rows], for dropout; may be null where no module drops
  bool bfloat16 = false;     // operands may be rounded to bfloat16 where the instruction set gains by it; h stays float32
};

// Adds to y [rows × ldy] in `storage` or, where y_f32, in float32.
void lora_forward(Context& context, const LoraCall& call, void* y, int64_t ldy, bool y_f32);

// dy [rows × ldy] float32. Adds to dx [rows × in] (may be null) and to the factors' gradients; shared factors add up.
void lora_backward(Context& context, const LoraCall& call, const float* dy, int64_t ldy, float* dx);

}  // namespace pluralign
