#include "gemm.h"

namespace pluralign {
namespace {

double at(const Operand& o, int64_t i, int64_t j) {
  const int64_t p = i * o.row_stride + j * o.col_stride;
  switch (o.type) {
    case DType::f32: return static_cast<const float*>(o.data)[p];
    case DType::bf16: return to_float(static_cast<const bf16*>(o.data)[p]);
    default: return to_float(static_cast<const f16*>(o.data)[p]);
  }
}

}  // namespace

void gemm_reference(const Gemm& g) {
  for (int64_t i = 0; i < g.m; ++i)
    for (int64_t j = 0; j < g.n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < g.k; ++p) sum += at(g.a, i, p) * at(g.b, p, j);
      sum *= g.alpha;
      if (g.bias) sum += g.bias[j];
      if (g.c_type == DType::f32) {
        float* c = static_cast<float*>(g.c) + i * g.ldc + j;
        *c = float(sum + (g.accumulate ? *c : 0.f));
      } else {
        bf16* c = static_cast<bf16*>(g.c) + i * g.ldc + j;
        *c = to_bf16(float(sum + (g.accumulate ? to_float(*c) : 0.f)));
      }
    }
}

}  // namespace pluralign
