// Adapters' factors as the steps of a generation read them, packed once for as long as the generation needs them.
#pragma once
#include <utility>

#include "bank.h"
#include "ops/lora/step.h"

namespace pluralign {

class PackedAdapters {
 public:
  // Holds these adapters of the bank (-1 is passed over) as steps over rows of this storage read them; what was held before
  // goes when much of it is no longer asked for. Factors must not change while they are held.
  void hold(Context& context, const ModelConfig& config, const Bank& bank, int storage, const std::vector<int>& adapters);

  // Null where the adapter leaves that linear alone. The adapter must be held, or -1.
  const StepModule* module(int adapter, int64_t layer, int target) const {
    if (adapter < 0) return nullptr;
    const StepModule& m = held_.at(adapter)[size_t(layer * kTargets + target)];
    return m.module ? &m : nullptr;
  }

 private:
  uint64_t bank_ = 0;
  std::map<int, std::vector<StepModule>> held_;
  std::map<std::pair<const float*, bool>, const void*> factors_;  // by factor, and whether it is a B: adapters may share it
  std::vector<Buffer> memory_;
};

}  // namespace pluralign
