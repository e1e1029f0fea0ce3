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

// A thread that takes some of the sequences through all layers by itself.
struct Lane {
  Lane(const Kernels& kernels, const ModelConfig& config, bool bfloat16) : context(kernels, pool), decoder(config, bfloat16) {}
  Pool pool{1};
  Context context;
  Decoder decoder;
  Buffer logits;
};

}  // namespace pluralign
