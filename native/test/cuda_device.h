// The CUDA library over the emulator, as tests of its operators use it. Threads of a block run in three orders: a result that
// depends on it lacks a barrier somewhere.
#pragma once
#include "cuda/emulator.h"
#include "cuda/runtime.h"
#include "packed_forest.h"
#include "support.h"

extern "C" const pluralign::device::Table* pluralign_device();

namespace pluralign::test {

class EmulatedDevice {
 public:
  explicit EmulatedDevice(emulator::Order order = emulator::Order::forward) : order_(order), table_(*pluralign_device()) {
    char text[256] = "";
    const device::Options options{0, 0, 0};
    if (table_.open(&options, &context_, text, sizeof text) != device::Status::ok) throw_error("UNSUPPORTED", "%s", text);
    emulator::order = order;
  }
  ~EmulatedDevice() {
    table_.close(context_);
    emulator::order = emulator::Order::forward;
  }
  EmulatedDevice(const EmulatedDevice&) = delete;

  std::string name() const { return order_ == emulator::Order::forward ? "threads forward" : order_ == emulator::Order::backward ? "threads backward" : "threads shuffled"; }
  const device::Table& table() const { return table_; }
  device::Context* context() const { return context_; }
  void check(device::Status status) const {
    if (status != device::Status::ok) throw_error("UNSUPPORTED", "%s", table_.message(context_));
  }
  template <class Call>
  void run(device::Status (*device::Table::*entry)(device::Context*, const Call*), const Call& call) { check((table_.*entry)(context_, &call)); }

  // An array on the device.
  class Array {
   public:
    Array(EmulatedDevice& gpu, const void* from, size_t bytes, size_t count) : gpu_(&gpu), bytes_(bytes), count_(count) {
      gpu.check(gpu.table().allocate(gpu.context(), bytes, "a test", &at_));
      if (from) gpu.check(gpu.table().upload(gpu.context(), at_, from, bytes));
    }
    Array(Array&& o) noexcept : gpu_(o.gpu_), at_(o.at_), bytes_(o.bytes_), count_(o.count_) { o.at_ = nullptr; }
    ~Array() {
      if (at_) gpu_->table().release(gpu_->context(), at_);
    }
    void* data() const { return at_; }
    template <class T = float>
    T* as() const { return static_cast<T*>(at_); }
    float* floats() const { return as<float>(); }
    template <class T = float>
    std::vector<T> values() const {
      std::vector<T> out(bytes_ / sizeof(T));
      gpu_->check(gpu_->table().fetch(gpu_->context(), out.data(), at_, out.size() * sizeof(T)));
      return out;
    }
    Typed typed(int storage) const {
      Typed out(storage, count_);
      gpu_->check(gpu_->table().fetch(gpu_->context(), out.data(), at_, bytes_));
      return out;
    }

   private:
    EmulatedDevice* gpu_;
    void* at_ = nullptr;
    size_t bytes_, count_;
  };
  template <class T>
  Array take(const std::vector<T>& v) { return Array(*this, v.data(), v.size() * sizeof(T), v.size()); }
  Array take(const Typed& t) { return Array(*this, t.data(), t.values.size() * dtype_size(t.type), t.values.size()); }
  // Not a number anywhere.
  Array room(int64_t floats) { return Array(*this, nullptr, size_t(floats) * 4, size_t(floats)); }

 private:
  emulator::Order order_;
  const device::Table& table_;
  device::Context* context_ = nullptr;
};

template <class Body>
void on_emulated_device(Body&& body) {
  for (const emulator::Order order : {emulator::Order::forward, emulator::Order::backward, emulator::Order::shuffled}) {
    EmulatedDevice gpu(order);
    body(gpu);
  }
}

// A forest's plan on the device.
class TestPlan : public PackedForest {
 public:
  TestPlan(EmulatedDevice& gpu, const std::vector<int>& parents, const std::vector<int64_t>& lengths, const std::vector<int>& adapters, int64_t vocabulary = 17)
      : PackedForest(parents, lengths, adapters, vocabulary), arrays(PackedForest::arrays()), gpu_(gpu) {
    gpu.check(gpu.table().make_plan(gpu.context(), &arrays, &plan_));
  }
  ~TestPlan() { gpu_.table().drop_plan(gpu_.context(), plan_); }
  TestPlan(const TestPlan&) = delete;
  const device::Plan* get() const { return plan_; }

  const device::PlanArrays arrays;

 private:
  EmulatedDevice& gpu_;
  device::Plan* plan_ = nullptr;
};

}  // namespace pluralign::test
