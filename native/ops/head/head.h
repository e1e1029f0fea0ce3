// Log-probabilities of given tokens under a linear head, without ever storing all logits.
#pragma once
#include "ops/gemm/gemm.h"

namespace pluralign {

// Columns of logits that exist at a time; fixed, so that sums over the vocabulary keep their order.
constexpr int64_t kHeadChunk = 512;
constexpr int64_t kHeadRows = 1024;

struct Head {
  int64_t rows, width, vocabulary;
  Operand hidden;                          // [rows × width]
  const void* weight;                      // [vocabulary × width]
  DType weight_type;
  const int32_t* targets;                  // [rows], each in [0, vocabulary)
};

// logps[i] = log softmax(hidden[i] · weightᵀ)[targets[i]]; lse[i] = log Σ e^logit. squares (may be null): Σ_v p_v².
void head_logps(Context& context, const Head& head, float* logps, float* lse, float* squares);

// Adds to dhidden [rows × width] (float32, leading dimension width) and, where dweight is not null, to dweight
// [vocabulary × width], the gradient given dlogps [rows]. Logits are computed again.
void head_backward(Context& context, const Head& head, const float* lse, const float* dlogps, float* dhidden, float* dweight);

}  // namespace pluralign
