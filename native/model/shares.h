// A plan cut into shares of whole trees. Shares know nothing of each other, so threads may take one each through all layers
// by itself, where meeting in every product would cost more than the products.
#pragma once
#include <memory>

#include "continuation.h"
#include "plan.h"

namespace pluralign {

// Consecutive trees of at least `rows` rows each, or the plan itself where it has no two such shares (or trees that cannot be
// told apart by rows). first_row and first_readout count as the plan's do. How a plan is cut depends on nothing but the plan.
std::vector<Plan> cut_plan(Plan plan, int64_t rows);

// What is read of a plan, and what its backward pass needs of that.
struct Readouts {
  DeviceBuffer values, squares, partition, adapters, gradient, dhidden;
};

// The activations of a share between its forward and its backward pass. Gradients of shares are summed apart and added up in
// the shares' order, so that no bit depends on who took which.
struct KeptShare {
  KeptShare(const ModelConfig& config, bool bfloat16) : decoder(config, bfloat16) {}
  // The bank with gradients of the share's own.
  PlacedBank& bank_apart(const Device& device, const Bank& bank);

  Decoder decoder;
  Readouts readouts;
  std::unique_ptr<PlacedPlan> plan;

 private:
  std::unique_ptr<PlacedBank> bank_;
  Buffer gradients_;
  uint64_t bank_id_ = 0;
};

}  // namespace pluralign
