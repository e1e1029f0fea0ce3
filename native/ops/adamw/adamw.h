// AdamW (Loshchilov & Hutter 2019) over runs of one flat buffer, and sums over such runs.
#pragma once
#include "ops/table.h"

namespace pluralign {

// m ← β1 m + (1-β1) g;  v ← β2 v + (1-β2) g²;  p ← p (1 - lr·wd) - lr · (m / (1-β1^t)) / (sqrt(v / (1-β2^t)) + eps),
// with g first multiplied by grad_scale. Elementwise, so threads do not change the result.
void adamw(Context& context, float* p, const float* g, float* m, float* v, int64_t n, const AdamWStep& step);

AdamWStep adamw_step(double learning_rate, double beta1, double beta2, double eps, double weight_decay, double grad_scale, int64_t t);

}  // namespace pluralign
