// The head in bfloat16: every thread takes rows of its own through the whole vocabulary, so that a chunk of logits is made,
// used and forgotten in its second-level cache.
#pragma once
#include <cmath>
#include <limits>

#include "head.h"

namespace pluralign {

// What a row of logits adds up to, chunk after chunk.
struct HeadSums {
  float top = -std::numeric_limits<float>::infinity(), target = 0;
  double sum = 0, squares = 0;

  void finish(float& logp, Partition& partition, float* square) const {
    partition = {top, sum};
    logp = float(double(target) - (double(top) + std::log(sum)));
    if (square) *square = float(squares / (sum * sum));
  }
};

// Few rows over a weight that is not packed are better shared out by vocabulary, chunk by chunk; the numbers are the same.
inline bool fuses(const Context& context, const Head& head) {
  return context.kernels.multiply_bf16 && head.hidden.type == DType::bf16 && (head.packed || head.rows >= 32 * context.pool.size());
}

void fused_head_logps(Context& context, const Head& head, float* logps, Partition* partition, float* squares, float* slopes);
void fused_head_backward(Context& context, const Head& head, const Partition* partition, const float* dlogps, float* dhidden);

}  // namespace pluralign
