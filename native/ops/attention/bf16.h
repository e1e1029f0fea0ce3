// Attention with its products in bfloat16: queries, keys, values, probabilities and what flows back are rounded to it before a
// product, sums, scores and the softmax are float32.
#pragma once
#include "attention.h"

namespace pluralign {

inline bool attends_in_bf16(const Context& context, int storage) { return context.kernels.multiply_bf16 && storage == kBf16; }

void attention_bf16(Context& context, const AttentionShape& shape, const std::vector<AttentionSegment>& segments, const float* q,
                    int64_t stride, bf16* out);
void attention_bf16_backward(Context& context, const AttentionShape& shape, const std::vector<AttentionSegment>& segments,
                             const std::vector<std::vector<int>>& trees, const float* q, int64_t stride, const float* dout, float* dq);

}  // namespace pluralign
