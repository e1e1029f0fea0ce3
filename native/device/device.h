// A device as model code holds it, and memory on it. Statuses of the table become errors here.
#pragma once
#include "base/status.h"
#include "device/operators.h"
#include "ops/table.h"

namespace pluralign {

const device::Table& cpu_table();  // device/cpu.cc; its context is a pluralign::Context

class Device {
 public:
  Device(Context& cpu) : table_(&cpu_table()), context_(reinterpret_cast<device::Context*>(&cpu)), cpu_(&cpu) {}
  Device(const device::Table& table, device::Context* context) : table_(&table), context_(context) {}

  bool on_cpu() const { return cpu_ != nullptr; }
  // Throws UNSUPPORTED on another device, saying that `what` needs the CPU.
  Context& cpu(const char* what) const {
    if (!cpu_) throw_error("UNSUPPORTED", "%s runs on the CPU only in this version; set device: cpu", what);
    return *cpu_;
  }
  bool operator==(const Device& o) const { return context_ == o.context_ && table_ == o.table_; }
  bool shares_memory(const Device& o) const { return context_ == o.context_ || (cpu_ && o.cpu_); }

  template <class Call>
  void run(device::Status (*device::Table::*entry)(device::Context*, const Call*), const Call& call) const {
    if (!(table_->*entry)) throw_error("UNSUPPORTED", "the device's library lacks an operator that this needs");
    check((table_->*entry)(context_, &call));
  }
  void* allocate(size_t bytes, const char* purpose) const {
    void* at = nullptr;
    check(table_->allocate(context_, bytes, purpose, &at));
    return at;
  }
  void release(void* at) const { table_->release(context_, at); }
  void upload(void* to, const void* host, size_t bytes) const { check(table_->upload(context_, to, host, bytes)); }
  void fetch(void* host, const void* from, size_t bytes) const { check(table_->fetch(context_, host, from, bytes)); }
  void copy(void* to, const void* from, size_t bytes) const { check(table_->copy(context_, to, from, bytes)); }
  void zero(void* to, size_t bytes) const { check(table_->zero(context_, to, bytes)); }
  // Lets go of it: what is still held on it may be released, nothing else may be asked of it.
  void close() const { table_->close(context_); }
  void synchronize() const { check(table_->synchronize(context_)); }
  device::Plan* make_plan(const device::PlanArrays& arrays) const {
    device::Plan* plan = nullptr;
    check(table_->make_plan(context_, &arrays, &plan));
    return plan;
  }
  void drop_plan(device::Plan* plan) const { table_->drop_plan(context_, plan); }
  void renew_plan(device::Plan* plan, const device::PlanArrays& arrays) const {
    if (!table_->renew_plan) throw_error("UNSUPPORTED", "the device has no standing plans");
    check(table_->renew_plan(context_, plan, &arrays));
  }
  // Recordings (device/operators.h); null where the device makes none, or `queue` has what cannot be recorded.
  template <class Queue>
  device::Recording* record(Queue&& queue) const {
    if (!table_->begin_recording || table_->begin_recording(context_) != device::Status::ok) return nullptr;
    device::Recording* recording = nullptr;
    try {
      queue();
      check(table_->end_recording(context_, &recording));
      return recording;
    } catch (const Error& e) {
      if (!recording) table_->end_recording(context_, nullptr);
      if (std::string(e.code()) == "UNSUPPORTED") return nullptr;
      throw;
    }
  }
  // False where it is stale.
  bool replay(device::Recording* recording) const {
    const device::Status status = table_->replay(context_, recording);
    if (status != device::Status::stale) check(status);
    return status == device::Status::ok;
  }
  void drop_recording(device::Recording* recording) const { table_->drop_recording(context_, recording); }
  device::Memory memory() const {
    device::Memory m{};
    check(table_->memory(context_, &m));
    return m;
  }

 private:
  void check(device::Status status) const {
    if (status == device::Status::ok) return;
    const char* code = status == device::Status::out_of_memory  ? "OUT_OF_MEMORY"
                       : status == device::Status::device_lost  ? "DEVICE_LOST"
                       : status == device::Status::bad_argument ? "BAD_ARGUMENT"
                       : status == device::Status::non_finite   ? "NON_FINITE"
                       : status == device::Status::failed       ? "INTERNAL"
                                                                : "UNSUPPORTED";
    throw Error(code, table_->message(context_));
  }

  const device::Table* table_;
  device::Context* context_;
  Context* cpu_ = nullptr;
};

// Memory of a device that grows to the largest size asked for and stays, as Buffer does.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(const char* purpose = "activations") : purpose_(purpose) {}
  DeviceBuffer(DeviceBuffer&& o) noexcept : purpose_(o.purpose_), device_(o.device_), data_(o.data_), bytes_(o.bytes_) { o.forget(); }
  DeviceBuffer& operator=(DeviceBuffer&& o) noexcept {
    std::swap(purpose_, o.purpose_);
    std::swap(device_, o.device_);
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  ~DeviceBuffer() { release(); }

  // At least `bytes`; contents are lost when it grows or comes to another device.
  void* get(const Device& device, size_t bytes) {
    if (bytes > bytes_ || !data_ || !held_by(device)) {
      release();
      const size_t rounded = (bytes + bytes / 16 + 63) / 64 * 64;
      data_ = device.allocate(std::max<size_t>(rounded, 64), purpose_);
      device_ = device_of(device);
      bytes_ = rounded;
    }
    return data_;
  }
  template <class T = float>
  T* as(const Device& device, int64_t count) { return static_cast<T*>(get(device, size_t(count > 0 ? count : 1) * sizeof(T))); }
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void release() {
    if (!data_) return;
    if (device_) device_->release(data_);
    else ::operator delete(data_, std::align_val_t(64));
    forget();
  }

 private:
  // Kept as long as the process. What they name lasts as long as memory is held on it (Table::close).
  static const Device* device_of(const Device& device);
  bool held_by(const Device& device) const { return device_ ? *device_ == device : device.on_cpu(); }
  void forget() {
    data_ = nullptr;
    device_ = nullptr;
    bytes_ = 0;
  }

  const char* purpose_;
  const Device* device_ = nullptr;  // null: the CPU
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace pluralign
