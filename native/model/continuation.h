// Rows that continue cached sequences, and the threads that run them.
#pragma once
#include "decoder.h"

namespace pluralign {

// Rows of one cached sequence, which stand behind its first `prefix`, under one policy (adapter -1: the base).
struct Continuation {
  int slot, adapter;
  const int32_t* tokens;
  int64_t rows, prefix;
};

// The order of parts in which those of one adapter stand together, as given among themselves.
std::vector<size_t> by_adapter(const std::vector<Continuation>& parts);
// A plan of parts that stand by adapter; read[i]: whether the last row of part i is.
Plan plan_of(const std::vector<Continuation>& parts, const std::vector<bool>& read, const KvCache& cache);

// A thread that takes some of the sequences through all layers by itself.
struct Lane {
  Lane(const Kernels& kernels, const ModelConfig& config, bool bfloat16) : context(kernels, pool), decoder(config, bfloat16) {}
  Pool pool{1};
  Context context;
  Decoder decoder;
  Buffer logits;
};

}  // namespace pluralign
