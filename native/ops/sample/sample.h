// The next token from a row of logits.
#pragma once
#include <cstdint>
#include <vector>

namespace pluralign {

struct SampleOptions {
  float temperature;  // 0: the largest logit, the lower id on a tie
  int64_t top_k;      // 0: all
  float top_p;        // keep the smallest set of tokens whose probabilities reach this; 1: all
};

// The draw depends on seed, step and the row alone. `scratch` is reused between calls. Throws NON_FINITE where a logit is
// NaN or +infinity.
int32_t sample(const float* logits, int64_t vocabulary, const SampleOptions& options, uint32_t seed, uint32_t step, std::vector<int32_t>& scratch);

}  // namespace pluralign
