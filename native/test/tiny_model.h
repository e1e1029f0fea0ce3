// A tiny decoder whose weights and adapters all live in one flat buffer, and packs for it.
#pragma once
#include "double_model.h"
#include "model/model.h"

namespace pluralign::test {

struct TinyOptions {
  int64_t window = 0;
  bool qk_norm = false, tied = false, biases = true, all_weights = true;
  float dropout = 0;
  int64_t vocabulary = 17;  // of which packs use 17
};

struct Tiny : DoubleModel {
  explicit Tiny(const TinyOptions& o, unsigned seed = 1) : options(o) {
    config.vocabulary = o.vocabulary;
    config.hidden = 10;
    config.intermediate = 14;
    config.layers = 2;
    config.heads = 4;
    config.kv_heads = 2;
    config.head_dim = 6;
    config.window = o.window;
    config.eps = 1e-5;
    config.rope_frequencies = {1, 0.2, 0.03};
    config.qk_norm = o.qk_norm;
    config.tied = o.tied;
    Random random(seed);
    const auto add = [&](int64_t rows, int64_t cols, double mean, double deviation) {
      factors.push_back({int64_t(values.size()), rows, cols});
      for (int64_t i = 0; i < rows * cols; ++i) values.push_back(float(mean + random.normal(deviation)));
      return int(factors.size()) - 1;
    };
    for (const WeightShape& s : weight_shapes(config)) {
      if (s.optional && !o.biases) continue;
      const bool norm = s.name.find("norm") != std::string::npos;
      weights[s.name] = add(s.rows, s.cols, norm ? 1 : 0, norm ? 0.2 : s.rows == 1 ? 0.3 : s.name.find("embed") != std::string::npos ? 1 : 0.4);
    }
    base_factors = int(factors.size());
    // Adapter 0 everywhere; 1 in the upper layer, by a matrix between factors of 0; 2 with a vector and an A of its own.
    adapters.resize(3);
    for (int64_t l = 0; l < config.layers; ++l)
      for (int t = 0; t < kTargets; ++t) {
        const int a = add(3, target_in(config, t), 0, 0.4), b = add(target_out(config, t), 3, 0, 0.4);
        adapters[0].push_back({l, t, a, b, -1, 0.7f, o.dropout});
        if (l == 1) adapters[1].push_back({l, t, a, b, add(3, 3, 0, 0.5), -0.5f, o.dropout});
        if (l == 0 && t % 2 == 0) adapters[2].push_back({l, t, add(3, target_in(config, t), 0, 0.4), b, add(1, 3, 0, 1), 1.5f, 0.f});
      }
    reward_heads = {add(1, config.hidden, 0, 1), add(1, config.hidden, 0, 1), -1};
    gradients.assign(values.size(), 0.f);
  }
  Tiny(const Tiny&) = delete;

  Bank bank() { return Bank(values.data(), gradients.data(), int64_t(values.size()), factors, adapters, reward_heads, options.all_weights ? weights : std::map<std::string, int>{}); }
  std::vector<float> gradient_of(int first, int last) const {
    const int64_t end = last < int(factors.size()) ? factors[size_t(last)].offset : int64_t(gradients.size());
    return {gradients.begin() + factors[size_t(first)].offset, gradients.begin() + end};
  }

  TinyOptions options;
  std::vector<float> values, gradients;
  int base_factors;
};

struct TinyPack {
  // parents and lengths of segments, the adapter of each, and how many of them need a gradient. Every row is read.
  TinyPack(std::vector<int32_t> parents_, const std::vector<int32_t>& lengths, std::vector<int32_t> adapters_, size_t with_grad, unsigned seed)
      : parents(std::move(parents_)), adapters(std::move(adapters_)) {
    Random random(seed);
    starts.push_back(0);
    for (size_t s = 0; s < lengths.size(); ++s) {
      grads.push_back(s < with_grad);
      keys.push_back(uint32_t(random.bits()));
      for (int32_t i = 0; i < lengths[s]; ++i) {
        rows.push_back(int32_t(tokens.size()));
        tokens.push_back(int32_t(random.below(17)));
        targets.push_back(int32_t(random.below(17)));
        gradient.push_back(random.normal());
      }
      starts.push_back(int32_t(tokens.size()));
    }
  }
  Pack pack() const {
    return {tokens.data(), int64_t(tokens.size()), starts.data(), parents.data(), adapters.data(), grads.data(), keys.data(), int64_t(parents.size()),
            rows.data(), targets.data(), int64_t(rows.size())};
  }
  // The same where only every `step`-th row is read, from `first` on, the first of them twice.
  TinyPack reading(size_t first, size_t step) const {
    TinyPack out = *this;
    out.rows.clear(), out.targets.clear(), out.gradient.clear();
    for (size_t i = first; i < rows.size(); i += step)
      for (size_t twice = i == first ? 2 : 1; twice > 0; --twice) {
        out.rows.push_back(rows[i]);
        out.targets.push_back((targets[i] + int32_t(twice)) % 17);
        out.gradient.push_back(gradient[i] * float(twice));
      }
    return out;
  }
  std::vector<int32_t> tokens, starts, parents, adapters, rows, targets;
  std::vector<uint8_t> grads;
  std::vector<uint32_t> keys;
  std::vector<float> gradient;  // of every readout
};

// Two prompts with branches under adapters, the base, and trees without a gradient.
inline TinyPack forest_pack(bool with_base) {
  if (with_base) return TinyPack({-1, 0, 0, 2, -1, 4, -1, -1, -1}, {4, 3, 2, 2, 3, 2, 4, 3, 2}, {0, 0, 0, 0, 1, 1, 2, -1, 1}, 8, 3);
  return TinyPack({-1, 0, 0, 2, -1, 4, -1, 6}, {4, 3, 2, 2, 3, 2, 4, 3}, {0, 0, 0, 0, 1, 1, 1, 1}, 6, 3);
}

inline std::vector<float> score(Model& model, Context& context, const TinyPack& p, const Bank* bank, const ScoreRequest& request = {}) {
  std::vector<float> out(p.rows.size(), kNaN);
  model.score(context, p.pack(), bank, request, out.data(), nullptr, Cancel());
  return out;
}

}  // namespace pluralign::test
