// The CUDA library over the emulator, as tests of its operators use it. Threads of a block run in three orders: a result that
// depends on it lacks a barrier somewhere.
#pragma once
#include "cuda/emulator.h"
#include "cuda/runtime.h"
#include "device/operators.h"
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

// A plan of the device from segments: parents[i] < i or -1, rows of a segment, its adapter. Tokens count up; every row is read.
class TestPlan {
 public:
  TestPlan(EmulatedDevice& gpu, const std::vector<int>& parents, const std::vector<int64_t>& lengths, const std::vector<int>& adapters, int64_t vocabulary = 17) : gpu_(gpu) {
    std::vector<std::vector<device::PlanSpan>> paths;
    std::vector<std::vector<int32_t>> trees;
    std::vector<int> tree_of;
    for (size_t i = 0; i < parents.size(); ++i) {
      const int parent = parents[i];
      paths.push_back(parent < 0 ? std::vector<device::PlanSpan>{} : paths[size_t(parent)]);
      int64_t prefix = 0;
      for (const device::PlanSpan& s : paths[i]) prefix += s.rows;
      paths[i].push_back({arrays.rows, lengths[i]});
      tree_of.push_back(parent < 0 ? int(trees.size()) : tree_of[size_t(parent)]);
      if (parent < 0) trees.emplace_back();
      trees[size_t(tree_of[i])].push_back(int32_t(i));
      nodes.push_back({arrays.rows, lengths[i], prefix, int64_t(spans.size()), int64_t(paths[i].size())});
      spans.insert(spans.end(), paths[i].begin(), paths[i].end());
      if (!runs.empty() && runs.back().adapter == adapters[i]) runs.back().rows += lengths[i];
      else runs.push_back({arrays.rows, lengths[i], adapters[i], 0});
      for (int64_t t = 0; t < lengths[i]; ++t) {
        tokens.push_back(int32_t((arrays.rows + t * 7) % vocabulary));
        targets.push_back(int32_t((arrays.rows * 3 + t * 5 + 1) % vocabulary));
        positions.push_back(int32_t(prefix + t));
        keys.push_back(uint64_t(i + 5) << 32 | uint64_t(prefix + t));
        read_rows.push_back(int32_t(arrays.rows + t));
      }
      arrays.rows += lengths[i];
      arrays.longest = std::max(arrays.longest, prefix + lengths[i]);
    }
    for (const auto& t : trees) {
      tree_starts.push_back(int32_t(tree_nodes.size()));
      tree_nodes.insert(tree_nodes.end(), t.begin(), t.end());
    }
    tree_starts.push_back(int32_t(tree_nodes.size()));
    arrays.nodes = int64_t(nodes.size());
    arrays.spans = int64_t(spans.size());
    arrays.trees = int64_t(trees.size());
    arrays.runs = int64_t(runs.size());
    arrays.readouts = int64_t(read_rows.size());
    arrays.tokens = tokens.data();
    arrays.positions = positions.data();
    arrays.row_keys = keys.data();
    arrays.node = nodes.data();
    arrays.span = spans.data();
    arrays.tree_starts = tree_starts.data();
    arrays.tree_nodes = tree_nodes.data();
    arrays.run = runs.data();
    arrays.read_rows = read_rows.data();
    arrays.targets = targets.data();
    gpu.check(gpu.table().make_plan(gpu.context(), &arrays, &plan_));
  }
  ~TestPlan() { gpu_.table().drop_plan(gpu_.context(), plan_); }
  TestPlan(const TestPlan&) = delete;
  const device::Plan* get() const { return plan_; }

  device::PlanArrays arrays{};
  std::vector<int32_t> tokens, positions, tree_starts, tree_nodes, read_rows, targets;
  std::vector<uint64_t> keys;
  std::vector<device::PlanNode> nodes;
  std::vector<device::PlanSpan> spans;
  std::vector<device::PlanRun> runs;

 private:
  EmulatedDevice& gpu_;
  device::Plan* plan_ = nullptr;
};

}  // namespace pluralign::test
