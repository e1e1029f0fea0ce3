// Generation on the emulated CUDA library: what to ask for, what was said, and a small model that says it.
#pragma once
#include "cuda_device.h"
#include "model/generate.h"
#include "tiny_model.h"

namespace pluralign::test {

inline SequenceRequest request(int64_t length, int adapter, int64_t fresh, uint32_t seed) {
  SequenceRequest q;
  for (int64_t t = 0; t < length; ++t) q.prompt.push_back(int32_t((int64_t(seed) * 5 + t * 3) % 17));
  q.members = {{adapter, 1.f}};
  q.max_new_tokens = fresh;
  q.seed = seed;
  q.sampling.temperature = 0.7f;
  return q;
}

// Tokens and log-probabilities of sequences, by their ids from 0.
struct Texts {
  explicit Texts(size_t sequences = 0) : tokens(sequences), logps(sequences) {}
  void add(const std::vector<SequenceOutput>& some) {
    for (const SequenceOutput& o : some) {
      tokens[size_t(o.id)].insert(tokens[size_t(o.id)].end(), o.tokens.begin(), o.tokens.end());
      logps[size_t(o.id)].insert(logps[size_t(o.id)].end(), o.logps.begin(), o.logps.end());
    }
  }
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::vector<float>> logps;
};

// A small float32 model on a device of its own.
struct OnGpu {
  OnGpu(int64_t rows, int64_t memory)
      : generation(model, machine.context, device, {rows, memory}, {}) {}
  EmulatedDevice gpu;
  Tiny tiny{TinyOptions{}};
  Machine machine{Isa::generic, 1};
  Model model{tiny.config, Weights::none(tiny.config), false};
  Bank bank = tiny.bank();
  Device device{gpu.table(), gpu.context()};
  Generation generation;
};

// What the CPU says to a request under the same factors as they are now.
inline std::vector<SequenceOutput> on_cpu(OnGpu& there, const SequenceRequest& asked, int64_t steps) {
  Model model(there.tiny.config, Weights::none(there.tiny.config), false);
  const Bank bank = there.tiny.bank();
  Generation generation(model, there.machine.context, there.machine.context, {4, 1 << 20}, {});
  generation.add(0, asked, bank.adapters());
  return generation.run(model, &bank, steps, Cancel());
}

}  // namespace pluralign::test
