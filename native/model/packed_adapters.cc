#include "packed_adapters.h"

namespace pluralign {

void PackedAdapters::hold(Context& context, const ModelConfig& config, const Bank& bank, int storage, const std::vector<int>& adapters) {
  if (bank_ != bank.id() || held_.size() > 2 * adapters.size() + 64) {
    held_.clear();
    factors_.clear();
    memory_.clear();
    bank_ = bank.id();
  }
  struct Task {
    const void** to;
    const float* factor;
    bool b;
    int64_t width, r, at;  // width: of the linear's input or output
  };
  std::vector<Task> tasks;
  std::vector<int> fresh;
  int64_t bytes = 0;
  for (int adapter : adapters) {
    if (adapter < 0) continue;
    const auto [held, is_new] = held_.try_emplace(adapter, size_t(config.layers * kTargets));
    if (!is_new) continue;
    fresh.push_back(adapter);
    for (int64_t layer = 0; layer < config.layers; ++layer)
      for (int t = 0; t < kTargets; ++t) {
        const LoraModule* m = bank.module(adapter, layer, t);
        if (!m) continue;
        held->second[size_t(layer * kTargets + t)].module = m;
        const auto pack = [&](const float* factor, bool b, int64_t width, int64_t size) {
          const auto [known, missing] = factors_.try_emplace({factor, b}, factor);
          if (!missing || size == 0) return;
          tasks.push_back({&known->second, factor, b, width, m->r, bytes});
          bytes += (size + 63) / 64 * 64;
        };
        const int64_t in = target_in(config, t), out = target_out(config, t);
        pack(m->a, false, in, step_a_bytes(storage, m->r, in));
        pack(m->b, true, out, step_b_bytes(context.kernels, storage, out, m->r));
      }
  }
  if (bytes > 0) {
    char* memory = memory_.emplace_back().as<char>(bytes);
    context.pool.run(int64_t(tasks.size()), [&](int64_t i, int) {
      const Task& t = tasks[size_t(i)];
      *t.to = memory + t.at;
      if (t.b) pack_step_b(context.kernels, storage, memory + t.at, t.factor, t.width, t.r);
      else pack_step_a(context.kernels, memory + t.at, t.factor, t.r, t.width);
    });
  }
  for (int adapter : fresh)
    for (StepModule& m : held_[adapter]) {
      if (!m.module) continue;
      m.a = factors_.at({m.module->a, false});
      m.b = factors_.at({m.module->b, true});
    }
}

}  // namespace pluralign
