// Dense products: C[m × n] = alpha · A[m × k] B[k × n] (+ bias) (+ C).
#pragma once
#include "ops/table.h"

namespace pluralign {

// A strided operand: element (i, j) lies at data[i * row_stride + j * col_stride], strides in elements.
// One of the strides is 1 in every use here.
struct Operand {
  const void* data;
  DType type;
  int64_t row_stride, col_stride;
};

inline Operand matrix(const void* data, DType type, int64_t ld) { return {data, type, ld, 1}; }
inline Operand transposed(const void* data, DType type, int64_t ld) { return {data, type, 1, ld}; }

// A constant right operand packed once (see Kernels::pack_b, or pack_bf16), whole k.
struct PackedOperand {
  Buffer panels;
  int64_t n = 0, k = 0;
  bool bfloat16 = false;
};

struct Gemm {
  int64_t m, n, k;
  Operand a, b;
  void* c;
  DType c_type;
  int64_t ldc;
  float alpha = 1.f;
  const float* bias = nullptr;          // [n], added after alpha
  bool accumulate = false;              // add to what C holds
  const PackedOperand* packed = nullptr;  // b, packed; b itself is then not read
  int64_t packed_column = 0;              // of *packed, where b begins: a multiple of 64
  bool bfloat16 = false;                  // operands may be rounded to bfloat16, as in a model that computes in it
};

// Products of two bfloat16 operands, and those that may be rounded, run in bfloat16 where the instruction set has that.
inline bool runs_in_bf16(const Kernels& kernels, DType a, DType b, bool rounds) {
  return kernels.multiply_bf16 && (rounds || (a == DType::bf16 && b == DType::bf16));
}

// Sums over k run in one order, whatever m, n, packing and threads: a row of C does not depend on the other rows.
// Accumulates in float32; subnormal bfloat16 may count as zero. Empty m or n: nothing; empty k: alpha · 0.
void gemm(Context& context, const Gemm& g);
void gemm_reference(const Gemm& g);

// `bfloat16`: for products that run in it (see runs_in_bf16), and only for those. Serial.
void pack_right(const Kernels& kernels, PackedOperand& out, const Operand& b, int64_t n, int64_t k, bool bfloat16);

constexpr int64_t kGemmBlockK = 1024;

}  // namespace pluralign
