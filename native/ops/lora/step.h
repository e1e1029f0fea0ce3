// Low-rank products of a step of generation, where each of many adapters answers for one row or a few. Their factors come
// from memory, each once a step, and little is done with them: so they are held as the products read them, from end to end.
#pragma once
#include "lora.h"

namespace pluralign {

// The factors of one linear, packed by pack_step. In bfloat16 A is [groups of 8 rows][blocks of 32 columns][row][32] and B
// [16 rows][pairs of r][row][2], zero padded; in float32 A is as it was and B a right operand (Kernels::pack_b).
struct StepModule {
  const LoraModule* module = nullptr;
  const void *a = nullptr, *b = nullptr;
};

// Whether steps over rows of this storage take packed factors; else lora_forward does.
inline bool packs_steps(const Kernels& kernels, int storage) { return storage == kF32 || kernels.step_down; }
// Bytes that A [r × in] and B [out × r] take when packed; 0: A is read where it is.
int64_t step_a_bytes(int storage, int64_t r, int64_t in);
int64_t step_b_bytes(const Kernels& kernels, int storage, int64_t out, int64_t r);
void pack_step_a(const Kernels& kernels, void* to, const float* a, int64_t r, int64_t in);
void pack_step_b(const Kernels& kernels, int storage, void* to, const float* b, int64_t out, int64_t r);

// Rows [row, row + rows) of x, and what of y is theirs: y [rows × ldy], of which `out` columns.
struct StepRange {
  int64_t row, rows;
  const StepModule* module;
  int64_t out;
  float* y;
  int64_t ldy;
};

// y (+)= scale · (x Aᵀ) coreᵀ Bᵀ for every range, in one parallel region; x [rows × in] in `storage`. In bfloat16 factors and
// x Aᵀ are rounded to it and sums are float32. A row's numbers do not depend on the rows beside it. Nothing is dropped.
void lora_step(Context& context, int storage, const void* x, int64_t in, const StepRange* ranges, int64_t count, bool accumulate);

}  // namespace pluralign
