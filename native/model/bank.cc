#include "bank.h"

#include <atomic>

#include "base/status.h"
#include "placed.h"

namespace pluralign {
namespace {
std::atomic<uint64_t> made{0};
}

Bank::Bank(float* parameters, float* gradients, int64_t size, std::vector<Factor> factors,
           std::vector<std::vector<ModuleSpec>> adapters, std::vector<int> reward_heads, std::map<std::string, int> weights)
    : id_(++made), parameters_(parameters), gradients_(gradients), size_(size), factors_(std::move(factors)), specs_(std::move(adapters)),
      reward_heads_(std::move(reward_heads)), weights_(std::move(weights)) {
  const int count = int(factors_.size());
  for (const Factor& f : factors_)
    if (f.offset < 0 || f.rows < 1 || f.cols < 1 || f.rows > size || f.cols > size || f.rows * f.cols > size - f.offset)
      throw_error("BAD_SHAPE", "a factor of %lld x %lld at %lld does not fit a buffer of %lld floats", (long long)f.rows,
                  (long long)f.cols, (long long)f.offset, (long long)size);
  const auto known = [&](int index, bool none_is_fine) {
    if (index >= count || index < (none_is_fine ? -1 : 0)) throw_error("BAD_ARGUMENT", "factor %d of %d does not exist", index, count);
  };
  if (reward_heads_.size() != specs_.size()) throw_error("BAD_ARGUMENT", "rewardHeads must have one entry for each adapter");
  for (int head : reward_heads_) known(head, true);
  for (const auto& [name, index] : weights_) known(index, false);
  const int64_t all = int64_t(specs_.size());
  for (int64_t adapter = 0; adapter < all; ++adapter)
    for (const ModuleSpec& s : specs_[size_t(adapter)]) {
      known(s.a, false);
      known(s.b, false);
      known(s.core, true);
      if (s.target < 0 || s.target >= kTargets || s.layer < 0 || s.layer > INT32_MAX) throw_error("BAD_ARGUMENT", "no target %d in layer %lld", s.target, (long long)s.layer);
      if (!(s.dropout >= 0.f && s.dropout < 1.f)) throw_error("BAD_ARGUMENT", "dropout must be in [0, 1)");
      const int64_t r = factor(s.a).rows, core_rows = s.core < 0 ? 0 : factor(s.core).rows;
      if (factor(s.b).cols != r) throw_error("BAD_SHAPE", "A has rank %lld, B has rank %lld", (long long)r, (long long)factor(s.b).cols);
      if (s.core >= 0 && (factor(s.core).cols != r || (core_rows != r && core_rows != 1)))
        throw_error("BAD_SHAPE", "the core must be [r, r] or [1, r] with r = %lld", (long long)r);
      const auto [place, first] = places_.try_emplace(s.layer * kTargets + s.target, int64_t(modules_.size()));
      if (first) modules_.resize(modules_.size() + size_t(all));
      modules_[size_t(place->second + adapter)] = {values(s.a), values(s.b), s.core < 0 ? nullptr : values(s.core),
                                                   gradient(s.a), gradient(s.b), s.core < 0 ? nullptr : gradient(s.core),
                                                   r, core_rows, s.scale, s.dropout};
      largest_rank_ = std::max(largest_rank_, r);
      lowest_layer_ = std::min(lowest_layer_, s.layer);
    }
}

Bank::~Bank() = default;

PlacedBank& Bank::on(const Device& device) const {
  for (const auto& p : placed_)
    if (p->took_over() && !p->device().shares_memory(device)) throw_error("BAD_ARGUMENT", "the bank's factors are on another device; fetch them first (moveHome)");
  for (const auto& p : placed_)
    if (p->device().shares_memory(device)) return *p;
  return *placed_.emplace_back(std::make_unique<PlacedBank>(device, *this));
}

void Bank::check(const ModelConfig& config) const {
  for (const auto& specs : specs_)
    for (const ModuleSpec& s : specs) {
      const int64_t in = factor(s.a).cols, out = factor(s.b).rows;
      if (s.layer >= config.layers) throw_error("BAD_SHAPE", "an adapter names layer %lld of a model with %lld", (long long)s.layer, (long long)config.layers);
      if (in != target_in(config, s.target) || out != target_out(config, s.target))
        throw_error("BAD_SHAPE", "%s: the adapter is %lld -> %lld, the model's linear is %lld -> %lld (an adapter of another base?)",
                    target_name(s.layer, s.target).c_str(), (long long)in, (long long)out, (long long)target_in(config, s.target),
                    (long long)target_out(config, s.target));
    }
  for (int head : reward_heads_)
    if (head >= 0 && factor(head).rows * factor(head).cols != config.hidden)
      throw_error("BAD_SHAPE", "the reward head has %lld weights, the model's hidden size is %lld", (long long)(factor(head).rows * factor(head).cols),
                  (long long)config.hidden);
}

}  // namespace pluralign
