// The decoder, forward and backward, over one plan. Written once over the operators of a device; nothing here knows which.
#pragma once
#include <memory>

#include "base/cancel.h"
#include "kv_cache.h"
#include "ops/rope/rope.h"
#include "packed_adapters.h"
#include "placed.h"
#include "weights.h"

namespace pluralign {

// What a pass runs with.
struct Pass {
  const Device& device;
  const Network& network;
  const PlacedBank* bank;
  const PlacedPlan& plan;
  uint64_t dropout_seed;  // 0: off
  const Cancel& cancel;
  const KvCache* cache = nullptr;  // with it, segment i of the plan continues slot `slots[i]` behind its prefix
  const int* slots = nullptr;
  const PackedAdapters* packed = nullptr;  // the bank's, for a step of generation: few rows of each adapter, no gradient

  int64_t rows() const { return plan.plan.rows; }
};

class Decoder {
 public:
  Decoder(const ModelConfig& config, bool bfloat16) : config_(config), storage_(bfloat16 ? kBf16 : kF32) {}

  // Runs all layers and leaves the final hidden rows of the plan's readouts, after the last norm, in hidden(). With
  // `keep`, activations stay for backward(); with `checkpoint` only each layer's input does.
  void forward(const Pass& pass, bool keep, bool checkpoint);

  // dhidden [readouts × hidden] → gradients of the factors. The pass must be the one that forward() kept.
  void backward(const Pass& pass, const float* dhidden);

  // Passes at positions below it will find their rotations where they are.
  void reserve_positions(const Device& device, int64_t positions);

  void* hidden() const { return hidden_.data(); }
  int storage() const { return storage_; }
  size_t element() const { return storage_ == kF32 ? 4 : 2; }
  DType type() const { return storage_ == kF32 ? DType::f32 : DType::bf16; }
  int64_t activation_bytes() const;

 private:
  // Activations of one layer that its backward pass reads.
  struct Saved {
    DeviceBuffer input, input_rstd, qkv, attended, lse, middle, middle_rstd, gate_up, low_rank;
  };

  void layer_forward(const Pass& pass, int64_t layer, Saved& saved, float* x);
  void feed_forward(const Pass& pass, int64_t layer, Saved& saved, float* x);
  void layer_backward(const Pass& pass, int64_t layer, Saved& saved, float* dx, bool to_input);
  void feed_forward_backward(const Pass& pass, int64_t layer, Saved& saved, float* dx);
  // The last layer where few rows enough are read (tail.cc): x of all rows → that of the layer's output at the rows of tail_.
  void find_tail(const Pass& pass);
  Pass tail_pass(const Pass& pass) const { return {pass.device, pass.network, pass.bank, *tail_, pass.dropout_seed, pass.cancel}; }
  float* tail_forward(const Pass& pass, int64_t layer, Saved& saved, const float* x);
  // tail_dx_ holds the gradient of the layer's output; dx, zero so far, becomes that of its input.
  void tail_backward(const Pass& pass, int64_t layer, Saved& saved, float* dx, bool to_input);
  // normed ← the norm of x, all rows; gives those of tail_.
  const void* tail_norm(const Pass& pass, int64_t layer, const float* x, float* rstd, void* normed);
  void tail_rotate(const Pass& pass, const Pass& tail, int64_t layer, const Saved& saved);
  device::RopeCall tail_rope_call(const Pass& pass, int64_t layer, bool queries, const DeviceBuffer& raw, float* out) const;
  void norm(const Pass& pass, const Weight& weight, const float* x, void* y, float* rstd, int64_t rows);
  void rotate(const Pass& pass, int64_t layer, const Saved& saved, float* out);
  void attend(const Pass& pass, int64_t layer, Saved& saved, const float* rotated);
  device::RopeCall rope_call(const Pass& pass, int64_t layer, const Saved& saved, float* out) const;
  device::AttentionCall attention_call(const Pass& pass, const Saved& saved, const float* rotated) const;
  device::SwigluCall swiglu_call(const Pass& pass, const Saved& saved) const;
  // Targets [first, last] share x [rows × in]; their outputs lie side by side in rows of ldy.
  device::LinearCall linear_call(const Pass& pass, int64_t layer, int first, int last, const void* x, const Saved& saved, int64_t ldy) const;
  void linears(const Pass& pass, int64_t layer, int first, int last, const void* x, Saved& saved, void* y, int64_t ldy, bool residual);
  // The same where pass.packed is.
  void step_linears(const Pass& pass, int64_t layer, int first, int last, const void* x, void* y, int64_t ldy, bool residual);
  void linears_backward(const Pass& pass, int64_t layer, int first, int last, const void* x, const Saved& saved, const float* dy, int64_t ldy, float* dx);
  void norm_backward(const Pass& pass, const Weight& weight, float* dx, const float* dy, const float* x, const float* rstd, int64_t rows, bool accumulate);

  const ModelConfig config_;
  const int storage_;
  RopeTable rope_;
  const float* rope_values_ = nullptr;  // of rope_, on the device
  bool kept_ = false, checkpoint_ = false;
  std::vector<Saved> saved_;  // one for each layer; with checkpointing only their inputs
  Saved scratch_;             // of the layer in hand where nothing (else) is kept
  std::unique_ptr<PlacedPlan> tail_;  // the rows that are read, where the last layer runs for them alone
  std::vector<int32_t> tail_rows_;    // where they are in the plan
  Saved tail_saved_;                  // what of the last layer is of those rows
  DeviceBuffer tail_x_, tail_normed_, tail_rotated_, tail_dx_, tail_dnormed_, tail_drotated_;
  std::vector<StepRange> steps_;  // of the linears in hand
  Buffer addend_;
  DeviceBuffer rope_buffer_, x_, normed_, rotated_, act_, hidden_, read_, read_rstd_;
  DeviceBuffer dx_, dnormed_, drotated_, dattended_, dact_, dgate_up_, dread_;
};

}  // namespace pluralign
