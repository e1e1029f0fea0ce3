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

// A constant right operand packed once (see Kernels::pack_b), whole k.
struct PackedOperand {
  Buffer panels;
  int64_t n = 0, k = 0;
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
};

// Sums over k run in one order (blocks of kGemmBlockK, in sequence), whatever m, n, packing and threads: a row of C does
// not depend on the other rows. Accumulates in float32. Empty m or n: nothing; empty k: alpha · 0.
void gemm(Context& context, const Gemm& g);
void gemm_reference(const Gemm& g);

// Serial: for use inside a parallel region.
void pack_right(const Kernels& kernels, PackedOperand& out, const Operand& b, int64_t n, int64_t k);

constexpr int64_t kGemmBlockK = 1024;

}  // namespace pluralign
