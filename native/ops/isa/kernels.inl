// Every operator's vector code, for the instruction set of the including file.
#include "ops/isa/vec.inl"
#include "ops/gemm/simd.inl"
#include "ops/lora/simd.inl"
#include "ops/norm/simd.inl"
#include "ops/rope/simd.inl"
#include "ops/swiglu/simd.inl"
#include "ops/attention/simd.inl"
#include "ops/head/simd.inl"
#include "ops/adamw/simd.inl"
#include "ops/peak/simd.inl"
#include "ops/bilinear/simd.inl"

void fill(Kernels& k) {
  fill_gemm(k);
  fill_lora(k);
  fill_norm(k);
  fill_rope(k);
  fill_swiglu(k);
  fill_attention(k);
  fill_head(k);
  fill_adamw(k);
  fill_peak(k);
  fill_bilinear(k);
}
