// The next token from a row of logits.
#pragma once
#include <cstdint>
#include <vector>

#include "ops/table.h"

namespace pluralign {

// What is drawn from: softmax(logits / temperature) after the penalty, of the tokens that top_k, top_p and min_p all keep.
struct SampleOptions {
  float temperature = 0;         // 0: the largest logit, the lower id on a tie
  int64_t top_k = 0;             // 0: all
  float top_p = 1;               // keep the smallest set of tokens whose probabilities (among the top_k) reach this; 1: all
  float min_p = 0;               // keep tokens of at least this share of the likeliest one's probability
  float repetition_penalty = 1;  // Keskar et al. 2019: logits of seen tokens are divided by it where positive, else multiplied
};

struct Sample {
  int32_t token;
  float logp;  // log softmax(logits / temperature)[token], all tokens, no penalty; temperature 1 where greedy
};

// Where in [0, 1) the draw of a sequence's token falls.
double sample_place(uint32_t seed, uint32_t step);

struct SampleScratch {
  Buffer row;
  std::vector<int32_t> kept;
};

// The draw depends on seed, step, `seen` (the ids that are penalised, each once) and the row alone. Throws NON_FINITE where
// a logit is NaN or +infinity.
Sample sample(const Kernels& kernels, const float* logits, int64_t vocabulary, const SampleOptions& options, uint32_t seed, uint32_t step,
              const std::vector<int32_t>& seen, SampleScratch& scratch);

// How several policies speak with one voice: decoding-time multi-objective alignment (Shi et al. 2024), the solution for a
// sum of rewards under the divergence that each policy was trained with.
enum class Mix {
  reverse_kl,  // Π π^w
  forward_kl,  // 1 / Σ (w / π)
  alpha,       // (Σ w π^-α)^(-1/α)
};

// Logits of the mixture of policies with these logits, up to a constant, into out [vocabulary]; weights add up to 1. Throws
// NON_FINITE as sample does.
void mix_logits(const Kernels& kernels, Mix mix, double alpha, const std::vector<const float*>& logits, const std::vector<float>& weights,
                int64_t vocabulary, float* out);

}  // namespace pluralign
