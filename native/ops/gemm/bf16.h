// Products of bfloat16 summed in float32, on instruction sets that have them: panels packed once and used by several
// products, several terms that add up in one block of C, several products in one parallel region.
#pragma once
#include "gemm.h"

namespace pluralign {

// Elements of the panels of a [rows × k] operand, and from one panel of 16 rows to the next.
inline int64_t bf16_panel(int64_t k) { return (k + kBf16K - 1) / kBf16K * kBf16K * kBf16Panel; }
inline int64_t bf16_panels(int64_t rows, int64_t k) { return (rows + kBf16Panel - 1) / kBf16Panel * bf16_panel(k); }

enum class Side { left = 0, right = 1 };

// `rows`: rows of a left operand, columns of a right one.
struct Bf16Packing {
  bf16* panels;
  Side side;
  Operand operand;
  int64_t rows, k;
  float scale = 1;  // of a float32 operand
  const bf16* turned = nullptr;  // in place of a right operand: panels of its transpose, packed as a right one
};
// In one parallel region.
void pack_bf16(Context& context, const Bf16Packing* packings, int64_t count);

// Adds A B to rows [begin, end) of C, both multiples of 32 (or end the last row): A's panels from row `begin`.
struct Bf16Term {
  const bf16 *a, *b;
  int64_t k, begin, end;
};

// C[m × n] = alpha · Σ A B (+ bias) (+ addend) (+ C).
struct Bf16Product {
  int64_t m, n;
  const Bf16Term* terms;
  int64_t term_count;
  void* c;
  DType c_type;
  int64_t ldc;
  float alpha = 1.f;
  const float* bias = nullptr;
  bool accumulate = false;
  const float* addend = nullptr;  // [m × ldadd]
  int64_t ldadd = 0;
};
// In one parallel region; products write apart. Sums run over terms and k in order, whatever m, n and threads.
void multiply_bf16(Context& context, const Bf16Product* products, int64_t count);

// What gemm() does with a product that runs_in_bf16.
void gemm_bf16(Context& context, const Gemm& g);

}  // namespace pluralign
