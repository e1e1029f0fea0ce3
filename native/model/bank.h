// Adapters as references into one flat buffer of factors. Two adapters that name the same factor share it.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "config.h"
#include "device/device.h"
#include "ops/lora/lora.h"

namespace pluralign {

struct Factor {
  int64_t offset, rows, cols;
};

struct ModuleSpec {
  int64_t layer;
  int target, a, b, core;  // factor indices; core -1: none
  float scale, dropout;
};

class PlacedBank;

class Bank {
 public:
  // `parameters` and `gradients` are the caller's, `size` floats each, and outlive the bank. Throws BAD_ARGUMENT or
  // BAD_SHAPE where the layout does not fit itself.
  Bank(float* parameters, float* gradients, int64_t size, std::vector<Factor> factors,
       std::vector<std::vector<ModuleSpec>> adapters, std::vector<int> reward_heads, std::map<std::string, int> weights);
  ~Bank();
  Bank(const Bank&) = delete;

  // Throws BAD_SHAPE where a factor does not fit the model's linear.
  void check(const ModelConfig& config) const;

  uint64_t id() const { return id_; }  // no other bank of this process has had it
  int64_t size() const { return size_; }
  int adapters() const { return int(specs_.size()); }
  const std::vector<ModuleSpec>& specs(int adapter) const { return specs_[size_t(adapter)]; }
  // For every linear that some adapter names, one module for each adapter, r = 0 where it leaves the linear alone: those of a
  // linear stand together, from modules()[place]; place -1: nobody names it.
  const std::vector<LoraModule>& modules() const { return modules_; }
  int64_t place(int64_t layer, int target) const {
    const auto found = places_.find(layer * kTargets + target);
    return found == places_.end() ? -1 : found->second;
  }
  // Null where the adapter (-1: the base) leaves the linear alone.
  const LoraModule* module(int adapter, int64_t layer, int target) const {
    const int64_t at = place(layer, target);
    return adapter < 0 || at < 0 || modules_[size_t(at + adapter)].r == 0 ? nullptr : &modules_[size_t(at + adapter)];
  }
  // The bank on a device: the memory of JavaScript itself on the CPU, a copy elsewhere.
  PlacedBank& on(const Device& device) const;
  int64_t largest_rank() const { return largest_rank_; }
  int64_t lowest_layer() const { return lowest_layer_; }  // of any module; layers count where there is none
  const Factor& factor(int index) const { return factors_[size_t(index)]; }
  float* parameters() const { return parameters_; }
  float* gradients() const { return gradients_; }
  float* values(int index) const { return parameters_ + factors_[size_t(index)].offset; }
  float* gradient(int index) const { return gradients_ + factors_[size_t(index)].offset; }
  int reward_head(int adapter) const { return reward_heads_[size_t(adapter)]; }
  const std::map<std::string, int>& weights() const { return weights_; }

 private:
  uint64_t id_;
  float *parameters_, *gradients_;
  int64_t size_;
  std::vector<Factor> factors_;
  std::vector<std::vector<ModuleSpec>> specs_;  // of each adapter
  std::vector<LoraModule> modules_;
  std::map<int64_t, int64_t> places_;  // by layer * kTargets + target
  mutable std::vector<std::unique_ptr<PlacedBank>> placed_;
  std::vector<int> reward_heads_;
  std::map<std::string, int> weights_;
  int64_t largest_rank_ = 0, lowest_layer_ = INT64_MAX;
};

}  // namespace pluralign
