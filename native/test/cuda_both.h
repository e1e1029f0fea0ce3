// One call on two devices: the reference's operators and the emulated CUDA library's, over the same arrays.
#pragma once
#include "cuda_device.h"
#include "device/device.h"

namespace pluralign::test {

class Both {
 public:
  explicit Both(EmulatedDevice& gpu) : gpu_(gpu), machine_(Isa::reference, 1), cpu_(machine_.context) {}
  ~Both() {
    for (const auto& plan : plans_) cpu_.drop_plan(plan.second);
  }
  Both(const Both&) = delete;

  // An array on either side; the number names it.
  int add(const std::vector<float>& v) { return keep(v.data(), v.size() * 4, v.size(), kF32); }
  int add(const Typed& t) { return keep(t.data(), t.values.size() * dtype_size(t.type), t.values.size(), t.type == DType::f32 ? kF32 : kBf16); }
  template <class T>
  int add_raw(const std::vector<T>& v) { return keep(v.data(), v.size() * sizeof(T), 0, kF32); }
  int room(int64_t n, int storage = kF32) { return add(Typed(storage, size_t(n))); }

  // Where a call finds its arrays and plan on one side.
  struct Side {
    Both& both;
    bool gpu;
    template <class T = float>
    T* at(int array) const { return reinterpret_cast<T*>(gpu ? static_cast<char*>(both.arrays_[size_t(array)].on_gpu.data()) : both.arrays_[size_t(array)].host.data()); }
    const device::Plan* plan(const TestPlan& p) const { return gpu ? p.get() : both.cpu_plan(p); }
    // Pointers to parts of an array, as an array of the same side.
    template <class T>
    T* const* pointers(int array, const std::vector<int64_t>& offsets) const {
      std::vector<T*> list;
      for (int64_t o : offsets) list.push_back(o < 0 ? nullptr : at<T>(array) + o);
      return reinterpret_cast<T* const*>(at<T*>(gpu ? both.add_raw(list) : both.host_only(list)));
    }
  };
  template <class Call, class Make>
  void run(device::Status (*device::Table::*entry)(device::Context*, const Call*), Make&& make) {
    const Call on_cpu = make(Side{*this, false});
    cpu_.run(entry, on_cpu);
    const Call on_gpu = make(Side{*this, true});
    gpu_.run(entry, on_gpu);
  }
  void same(const std::string& where, int array, double absolute, double relative) {
    Kept& k = arrays_[size_t(array)];
    Typed host(k.storage, k.count);
    std::memcpy(host.data(), k.host.data(), k.bytes);
    CHECK_CLOSE(gpu_.name() + " " + where, k.on_gpu.typed(k.storage).now(), host.now(), absolute, relative);
  }

 private:
  struct Kept {
    std::vector<char> host;
    EmulatedDevice::Array on_gpu;
    size_t bytes, count;
    int storage;
  };
  int keep(const void* from, size_t bytes, size_t count, int storage) {
    const auto* at = static_cast<const char*>(from);
    std::vector<char> host(std::max<size_t>(bytes, 16));
    std::copy(at, at + bytes, host.begin());
    arrays_.push_back({std::move(host), EmulatedDevice::Array(gpu_, from, bytes, count), bytes, count, storage});
    return int(arrays_.size()) - 1;
  }
  template <class T>
  int host_only(const std::vector<T>& v) { return add_raw(v); }
  const device::Plan* cpu_plan(const TestPlan& p) {
    for (const auto& [known, plan] : plans_)
      if (known == &p) return plan;
    plans_.emplace_back(&p, cpu_.make_plan(p.arrays));
    return plans_.back().second;
  }

  EmulatedDevice& gpu_;
  Machine machine_;
  Device cpu_;
  std::vector<Kept> arrays_;
  std::vector<std::pair<const TestPlan*, device::Plan*>> plans_;
};

}  // namespace pluralign::test
