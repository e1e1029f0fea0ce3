// Log-probabilities of given tokens under a linear head, without ever storing all logits.
#pragma once
#include "ops/gemm/gemm.h"

namespace pluralign {

// Columns of logits that exist at a time; fixed, so that sums over the vocabulary keep their order.
constexpr int64_t kHeadChunk = 256;
constexpr int64_t kHeadRows = 1024;

struct Head {
  int64_t rows, width, vocabulary;
  Operand hidden;                          // [rows × width]
  const void* weight;                      // [vocabulary × width]
  DType weight_type;
  const int32_t* targets;                  // [rows], each in [0, vocabulary)
  float scale = 1;                         // of the logits: 1 / temperature
  const PackedOperand* packed = nullptr;   // of weightᵀ
};

// Of a row's logits x: their maximum and Σ e^(x - maximum). Kept apart, since their log would round what backward needs.
struct Partition {
  float maximum;
  double sum;
};

// logps[i] = log softmax(scale · hidden[i] · weightᵀ)[targets[i]]; partition [rows]. squares (may be null): Σ_v p_v². slopes
// (may be null; only where has_slopes): [rows × width], d logps[i] / d hidden[i], for which no logits are computed again.
void head_logps(Context& context, const Head& head, float* logps, Partition* partition, float* squares, float* slopes = nullptr);

// Says nothing of the number of rows, so that a row's gradient does not depend on it.
inline bool has_slopes(const Context& context, const Head& head) { return context.kernels.multiply_bf16 && head.hidden.type == DType::bf16 && head.packed; }

// Adds to dhidden [rows × width] (float32, leading dimension width) and, where dweight is not null, to dweight
// [vocabulary × width], the gradient given dlogps [rows]. Logits are computed again.
void head_backward(Context& context, const Head& head, const Partition* partition, const float* dlogps, float* dhidden, float* dweight);

}  // namespace pluralign
