#include "bank.h"

#include <atomic>

#include "base/status.h"

namespace pluralign {
namespace {
std::atomic<uint64_t> made{0};
}

Bank::Bank(float* parameters, float* gradients, int64_t size, std::vector<Factor> factors,
           const std::vector<std::vector<ModuleSpec>>& adapters, std::vector<int> reward_heads, std::map<std::string, int> weights)
    : id_(++made), parameters_(parameters), gradients_(gradients), size_(size), factors_(std::move(factors)), reward_heads_(std::move(reward_heads)), weights_(std::move(weights)) {
  const int count = int(factors_.size());
  for (const Factor& f : factors_)
    if (f.offset < 0 || f.rows < 1 || f.cols < 1 || f.rows > size || f.cols > size || f.rows * f.cols > size - f.offset)
      throw_error("BAD_SHAPE", "a factor of %lld x %lld at %lld does not fit a buffer of %lld floats", (long long)f.rows,
                  (long long)f.cols, (long long)f.offset, (long long)size);
  const auto known = [&](int index, bool none_is_fine) {
    if (index >= count || index < (none_is_fine ? -1 : 0)) throw_error("BAD_ARGUMENT", "factor %d of %d does not exist", index, count);
  };
  if (reward_heads_.size() != adapters.size()) throw_error("BAD_ARGUMENT", "rewardHeads must have one entry for each adapter");
  for (int head : reward_heads_) known(head, true);
  for (const auto& [name, index] : weights_) known(index, false);
  for (const auto& specs : adapters) {
    auto& modules = modules_.emplace_back();
    for (const ModuleSpec& s : specs) {
      known(s.a, false);
      known(s.b, false);
      known(s.core, true);
      if (s.target < 0 || s.target >= kTargets || s.layer < 0 || s.layer > INT32_MAX) throw_error("BAD_ARGUMENT", "no target %d in layer %lld", s.target, (long long)s.layer);
      if (!(s.dropout >= 0.f && s.dropout < 1.f)) throw_error("BAD_ARGUMENT", "dropout must be in [0, 1)");
      const int64_t r = factor(s.a).rows, core_rows = s.core < 0 ? 0 : factor(s.core).rows;
      if (factor(s.b).cols != r) throw_error("BAD_SHAPE", "A has rank %lld, B has rank %lld", (long long)r, (long long)factor(s.b).cols);
      if (s.core >= 0 && (factor(s.core).cols != r || (core_rows != r && core_rows != 1)))
        throw_error("BAD_SHAPE", "the core must be [r, r] or [1, r] with r = %lld", (long long)r);
      modules[s.layer * kTargets + s.target] = {{values(s.a), values(s.b), s.core < 0 ? nullptr : values(s.core),
                                                 gradient(s.a), gradient(s.b), s.core < 0 ? nullptr : gradient(s.core),
                                                 r, core_rows, s.scale, s.dropout},
                                                factor(s.a).cols, factor(s.b).rows};
      largest_rank_ = std::max(largest_rank_, r);
      lowest_layer_ = std::min(lowest_layer_, s.layer);
    }
  }
}

void Bank::check(const ModelConfig& config) const {
  for (const auto& modules : modules_)
    for (const auto& [key, m] : modules) {
      const int64_t layer = key / kTargets;
      const int target = int(key % kTargets);
      if (layer >= config.layers) throw_error("BAD_SHAPE", "an adapter names layer %lld of a model with %lld", (long long)layer, (long long)config.layers);
      if (m.in != target_in(config, target) || m.out != target_out(config, target))
        throw_error("BAD_SHAPE", "%s: the adapter is %lld -> %lld, the model's linear is %lld -> %lld (an adapter of another base?)",
                    target_name(layer, target).c_str(), (long long)m.in, (long long)m.out, (long long)target_in(config, target),
                    (long long)target_out(config, target));
    }
  for (int head : reward_heads_)
    if (head >= 0 && factor(head).rows * factor(head).cols != config.hidden)
      throw_error("BAD_SHAPE", "the reward head has %lld weights, the model's hidden size is %lld", (long long)(factor(head).rows * factor(head).cols),
                  (long long)config.hidden);
}

const LoraModule* Bank::module(int adapter, int64_t layer, int target) const {
  if (adapter < 0) return nullptr;
  const auto& modules = modules_[size_t(adapter)];
  const auto found = modules.find(layer * kTargets + target);
  return found == modules.end() ? nullptr : &found->second.lora;
}

void Bank::pack_panels(Context& context, const std::vector<int>& adapters) const {
  const int64_t nr = context.kernels.nr;
  const auto size = [&](const Module& m) { return (m.out + nr - 1) / nr * nr * m.lora.r; };
  std::vector<Module*> modules;
  std::vector<int64_t> at{0};
  for (int adapter : adapters) {
    if (adapter < 0) continue;
    for (auto& [key, m] : modules_[size_t(adapter)]) {
      modules.push_back(&m);
      at.push_back(at.back() + size(m));
    }
  }
  float* panels = panels_.as<float>(at.back());
  context.pool.run(int64_t(modules.size()), [&](int64_t i, int) {
    Module& m = *modules[size_t(i)];
    context.kernels.pack_b(panels + at[size_t(i)], m.lora.b, DType::f32, m.out, m.lora.r, m.lora.r, 1);
    m.lora.b_panels = panels + at[size_t(i)];
  });
}

void Bank::release_panels() const {
  for (auto& modules : modules_)
    for (auto& [key, m] : modules) m.lora.b_panels = nullptr;
}

}  // namespace pluralign
