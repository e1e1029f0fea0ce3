// Root-mean-square norm: y = x / sqrt(mean(x²) + eps) · weight, row by row (Zhang & Sennrich 2019).
#pragma once
#include "ops/table.h"

namespace pluralign {

// x [rows × width] float32; y [rows × width] in `storage` (kF32 or kBf16); rstd [rows].
void rmsnorm(Context& context, int storage, void* y, float* rstd, const float* x, const float* weight, int64_t rows, int64_t width, float eps);

// dx (+)= d loss / d x, given dy [rows × width].
void rmsnorm_backward(Context& context, float* dx, const float* dy, const float* x, const float* rstd, const float* weight,
                      int64_t rows, int64_t width, bool accumulate);

// dweight += Σ_rows dy · x · rstd.
void rmsnorm_backward_weight(Context& context, float* dweight, const float* dy, const float* x, const float* rstd, int64_t rows, int64_t width);

}  // namespace pluralign
