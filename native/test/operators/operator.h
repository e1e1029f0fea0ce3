// One description of an operator of device/operators.h serves three purposes on any device: its results beside the CPU's, its
// gradients beside differences of its own forward pass, and its speed. (The idea is test-backend-ops of ggml.)
#pragma once
#include <functional>
#include <string>

#include "device/device.h"
#include "packed_forest.h"

namespace pluralign::test {

class Side;

// What becomes of an array: only read; written or added to by the forward pass, or by the backward pass.
enum class Role { input, result, gradient };

struct Array {
  std::string name;
  int storage;                // kF32 or kBf16
  std::vector<float> values;  // at first; not a number: to be written
  Role role;
  // Where it holds no numbers: its bytes, of which addresses may be a part. `raw` is how many there are.
  std::function<std::vector<char>(const Side&)> make;
};

// An operator on one shape in one type.
struct Case {
  std::string op, shape;
  int storage = 0;
  PackedForest forest;
  std::vector<Array> arrays;
  std::function<void(const Side&)> forward, backward;  // backward: empty where there is none
  struct Slope {
    int of, gradient;
    bool added = true;  // to what the array held; false: in its place
  };
  std::vector<Slope> slopes;  // of what `dout` weighs in `out`
  int out = -1, dout = -1;
  double flops = 0, bytes = 0;  // of a forward pass, at least

  int add(const char* name, int kind, std::vector<float> values, Role role = Role::input) {
    arrays.push_back({name, kind, std::move(values), role, nullptr});
    return int(arrays.size()) - 1;
  }
  int room(const char* name, int kind, int64_t n, Role role = Role::result);
  int made(const char* name, std::function<std::vector<char>(const Side&)> make) {
    arrays.push_back({name, 0, {}, Role::input, std::move(make)});
    return int(arrays.size()) - 1;
  }
};

// A case's arrays and plan on one device.
class Side {
 public:
  Side(const Device& device, const Case& c);
  ~Side();
  Side(const Side&) = delete;

  template <class T = float>
  T* at(int array) const { return array < 0 ? nullptr : static_cast<T*>(buffers_[size_t(array)].data()); }
  template <class T>
  const T* on_host(int array) const { return reinterpret_cast<const T*>(made_[size_t(array)].data()); }  // of what was made
  const device::Plan* plan() const { return plan_; }
  const Device& device() const { return device_; }
  template <class Call>
  void run(device::Status (*device::Table::*entry)(device::Context*, const Call*), const Call& call) const { device_.run(entry, call); }
  void put(int array, const std::vector<float>& values);
  std::vector<float> read(int array) const;

 private:
  Device device_;
  const Case& case_;
  const device::PlanArrays plan_arrays_;  // outlives the plan
  std::vector<DeviceBuffer> buffers_;
  std::vector<std::vector<char>> made_;
  device::Plan* plan_ = nullptr;
};

// Cases, made when they are wanted: odd shapes for equality and gradients, real ones for equality and speed.
using Maker = std::function<Case()>;
struct Cases {
  std::vector<Maker> odd, real;
};
Cases row_cases();      // embed, norm, rope, swiglu, gather, reward, adamw
Cases product_cases();  // attention, linear, head
Cases lora_cases();     // what adapters add, alone

// Random numbers, quick enough for whole weights; the same each time.
std::vector<float> noise(int64_t n, double deviation = 1);

// What one case showed: its worst relative error of any array, or why there is none.
struct Verdict {
  bool good = true;
  double error = 0;
  std::string what;  // the array it was, or the failure
};
Verdict equal(const Case& c, const Device& expected, const Device& device);
Verdict gradients(const Case& c, const Device& device);

// Median milliseconds of a forward and a backward pass (negative: there is none).
struct Times {
  double forward = -1, backward = -1;
};
Times time_case(const Case& c, const Device& device, double seconds);

}  // namespace pluralign::test
