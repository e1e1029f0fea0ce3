// Products of bfloat16 and rounding to it by AVX512_BF16; everything else of this set is avx512's. Standard headers come before the target is
// raised, so that no inline function of theirs is compiled for a processor that may not be there.
#include "ops/isa/headers.h"

#if defined(__x86_64__) || defined(_M_X64)
#define PLURALIGN_TARGET "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(PLURALIGN_TARGET))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of its own headers
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace pluralign::isa_avx512bf16 {

#define PLURALIGN_W 16
#define PLURALIGN_BF16
#include "ops/isa/vec.inl"
#include "ops/gemm/bf16_pack.inl"
#include "ops/gemm/bf16_finish.inl"
#include "ops/gemm/bf16_pairs.inl"
#include "ops/lora/step_bf16.inl"
#include "ops/head/bf16.inl"
#include "ops/attention/bf16.inl"
#include "ops/attention/narrow.inl"
#include "ops/attention/simd.inl"
#include "ops/norm/simd.inl"
#include "ops/rope/simd.inl"
#include "ops/swiglu/simd.inl"

void fill(Kernels& k) {
  fill_bf16_pack(k);
  fill_bf16_pairs(k);
  fill_step_bf16(k);
  fill_head_bf16(k);
  fill_attention_bf16(k);
  fill_attention_narrow(k);
  // The same code, rounding by one instruction.
  fill_attention(k);
  fill_norm(k);
  fill_rope(k);
  fill_swiglu(k);
}

}  // namespace pluralign::isa_avx512bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
