// Linear layers that share their input, with the adapters on them: y = x Wᵀ + b + scale · (x Aᵀ) Bᵀ over ranges of rows.
#pragma once
#include "ops/lora/lora.h"

namespace pluralign {

struct LinearPart {
  int64_t out;
  Operand weight;                       // [out × in], rows contiguous
  const PackedOperand* packed;          // of weightᵀ, or null
  const float* bias;                    // [out], or null
  const std::vector<LoraRange>* ranges;  // ascending
  float* h;                             // [rows × h_stride], x Aᵀ kept for the backward pass; unused without ranges
  void* y = nullptr;                    // forward: [rows × ldy]
  const float* dy = nullptr;            // backward: [rows × ldy]
  int64_t ldy = 0;
  const float* addend = nullptr;        // forward in bfloat16 where products run in it: [rows × ldadd], added before y is rounded
  int64_t ldadd = 0;
};

struct LinearCall {
  int64_t rows, in;
  int storage;     // of x; in bfloat16 operands may be rounded to it (see Gemm::bfloat16)
  const void* x;   // [rows × in]
  const LinearPart* parts;
  int64_t count;
  int64_t h_stride;
  const uint64_t* row_keys;  // for dropout
};

// y is written in the storage of x or, where `residual`, added to in float32.
void linear_forward(Context& context, const LinearCall& call, bool residual);

// dx [rows × in] float32 (may be null) becomes the gradient of x; the gradients of the factors are added to, those of
// weights and biases are the caller's.
void linear_backward(Context& context, const LinearCall& call, float* dx);

}  // namespace pluralign
