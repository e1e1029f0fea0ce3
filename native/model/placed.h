// What passes over a plan need of it and of a bank, where a device finds it.
#pragma once
#include <vector>

#include "bank.h"
#include "device/device.h"
#include "plan.h"

namespace pluralign {

// A plan as the operators take it: flat arrays, and the device's handle on them.
class PlacedPlan {
 public:
  PlacedPlan(const Device& device, Plan plan);
  // A standing one (device/operators.h): as many draws as readouts. Its runs count as many as its rows.
  PlacedPlan(const Device& device, Plan plan, std::vector<device::SampleRow> draws);
  ~PlacedPlan() { device_.drop_plan(handle_); }
  PlacedPlan(const PlacedPlan&) = delete;

  const Plan& plan = plan_;
  const device::Plan* handle() const { return handle_; }
  // Of a standing one: other contents of the same sizes.
  void renew(Plan plan, std::vector<device::SampleRow> draws);

 private:
  void lay_out(Plan plan, std::vector<device::SampleRow> draws, bool standing);

  Plan plan_;
  Device device_;
  std::vector<device::SampleRow> draws_;
  std::vector<device::PlanNode> nodes_;
  std::vector<device::PlanSpan> spans_;
  std::vector<device::PlanRun> runs_;
  std::vector<int32_t> tree_starts_, tree_nodes_;
  device::PlanArrays arrays_{};
  device::Plan* handle_ = nullptr;
};

// A bank's factors and gradients on a device. On the CPU they are the bank's own; elsewhere a copy whose values are brought
// up to date before each pass and whose gradients go home after it, of the adapters in the pass only.
class PlacedBank {
 public:
  // `gradients`, on the CPU: where they are summed until they go home, in place of the bank's own; as many floats.
  PlacedBank(const Device& device, const Bank& bank, float* gradients = nullptr);
  PlacedBank(const PlacedBank&) = delete;

  const Device& device() const { return device_; }
  const Bank& bank() const { return bank_; }
  float* values(int factor) const { return parameters_ + bank_.factor(factor).offset; }
  float* gradient(int factor) const { return gradients_ + bank_.factor(factor).offset; }
  // Modules of a linear, one for each adapter, or null: on the device, and with the same contents on the host.
  const LoraModule* modules(int64_t layer, int target) const { return at(modules_, layer, target); }
  const LoraModule* host_modules(int64_t layer, int target) const { return at(host_modules_, layer, target); }
  const float* const* heads() const { return heads_; }
  float* const* dheads() const { return dheads_; }

  // Values of what adapters of these runs (and, where the bank trains them, base weights) have; nothing on the CPU.
  void bring(const std::vector<AdapterRun>& runs);
  // Clears the gradients that a backward pass over these runs adds to, and adds them to the bank's own.
  void clear_gradients(const std::vector<AdapterRun>& runs);
  void send_gradients(const std::vector<AdapterRun>& runs);

  // Where steps are taken on the device: from take_over() to send_home() factors, gradients and AdamW's moments are kept here
  // and nothing of the above moves; the bank's own are left behind. m and v [bank's size], null: zeros. Gradients start cleared.
  // Not on the CPU.
  void take_over(const float* m, const float* v);
  void send_home(float* m, float* v);
  bool took_over() const { return took_over_; }
  struct Step {
    std::vector<int64_t> spans;  // [n × 2], of the flat buffer
    std::vector<int32_t> steps;  // [n], already advanced
    std::vector<uint8_t> decay;  // [n]
    double learning_rate, beta1, beta2, eps, weight_decay;
    double max_norm;  // of all gradients together; infinite: off
  };
  // Euclidean norms of the spans' gradients; one step of AdamW where all are finite.
  std::vector<double> step(const Step& step);
  void clear(const std::vector<int64_t>& spans);

 private:
  struct Stretch {
    int64_t begin, end;
  };
  std::vector<Stretch> stretches(const std::vector<AdapterRun>& runs) const;
  const LoraModule* at(const LoraModule* all, int64_t layer, int target) const {
    const int64_t place = bank_.place(layer, target);
    return place < 0 ? nullptr : all + place;
  }

  bool at_home() const { return gradients_ == bank_.gradients(); }

  Device device_;
  const Bank& bank_;
  float *parameters_, *gradients_;
  const LoraModule *modules_, *host_modules_;
  const float* const* heads_ = nullptr;
  float* const* dheads_ = nullptr;
  std::vector<LoraModule> moved_modules_;
  std::vector<const float*> own_heads_;
  std::vector<float*> own_dheads_;
  std::vector<float> arriving_;
  bool took_over_ = false;
  DeviceBuffer first_moment_{"moments"}, second_moment_{"moments"}, sums_{"norms"};
  DeviceBuffer parameters_buffer_{"adapters"}, gradients_buffer_{"gradients"}, modules_buffer_{"adapters"}, heads_buffer_{"adapters"};
};

}  // namespace pluralign
