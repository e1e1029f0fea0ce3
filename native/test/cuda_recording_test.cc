// Recordings of the CUDA library over the emulator's graphs: what they keep, what they see anew, when they end.
#define PLURALIGN_EMULATE_CUDA
#include "cuda_graphs.h"

#include "cuda/device.cuh"
#include "device/device.h"

using namespace pluralign;
using namespace pluralign::test;
using device::Status;
using device::Table;

namespace {

__global__ void add_kernel(int* to, const int* from, int by) { to[threadIdx.x] += from[threadIdx.x] + by; }

// SwiGLU of one row of two numbers, recorded.
struct Recorded {
  explicit Recorded(EmulatedDevice& gpu)
      : gpu(gpu), in(gpu.take(std::vector<float>{1, 2, 3, 4})), out(gpu.room(2)), on(gpu.table(), gpu.context()),
        recording(on.record([&] { gpu.run(&Table::swiglu, call()); })) {}
  ~Recorded() {
    if (recording) on.drop_recording(recording);
  }
  device::SwigluCall call() const { return {1, 2, in.data(), out.data(), nullptr, nullptr, kF32, 0}; }
  EmulatedDevice& gpu;
  EmulatedDevice::Array in, out;
  Device on;
  device::Recording* recording;
};

}  // namespace

TEST(cuda_emulator_captures_arguments_and_no_memory) {
  cudaStream_t stream;
  CHECK(cudaStreamCreateWithFlags(&stream, 0) == cudaSuccess);
  std::vector<int> to(4, 0), from{1, 2, 3, 4}, host(4, 7), copied(4, 0);
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  {
    int* at = to.data();
    const int* what = from.data();
    int by = 10;
    PLURALIGN_LAUNCH(add_kernel, 1, 4, 0, stream, at, what, by);
    by = 1000;
    at = nullptr;
    CHECK(cudaMemcpyAsync(copied.data(), host.data(), 16, cudaMemcpyHostToDevice, stream) == cudaSuccess);
  }
  CHECK(to == std::vector<int>(4, 0) && copied == std::vector<int>(4, 0));
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess && cudaGraphInstantiate(&ready, graph, 0) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);
  from = {5, 6, 7, 8};
  host.assign(4, 9);  // a graph copies what lies there now
  CHECK(cudaGraphLaunch(ready, stream) == cudaSuccess && cudaGraphLaunch(ready, stream) == cudaSuccess);
  CHECK((to == std::vector<int>{30, 32, 34, 36}) && copied == std::vector<int>(4, 9));
  // Memory cannot be had during a capture, which is lost then.
  void* some = nullptr;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
  CHECK(cudaMalloc(&some, 64) == cudaErrorStreamCaptureUnsupported && cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && !graph);
  cudaGetLastError();
  cudaGraphExecDestroy(ready);
  cudaStreamDestroy(stream);
}

TEST(cuda_recording_is_off_where_it_was_not_asked_for) {
  const Graphs off(false);
  EmulatedDevice gpu;
  CHECK(!Recorded(gpu).recording);
  CHECK(gpu.table().begin_recording(gpu.context()) == Status::unsupported);
  CHECK(std::string(gpu.table().message(gpu.context())).find("PLURALIGN_CUDA_GRAPHS") != std::string::npos);
}

TEST(cuda_recording_runs_when_it_is_replayed) {
  const Graphs on(true);
  EmulatedDevice gpu;
  Recorded r(gpu);
  CHECK(r.recording && std::isnan(r.out.values()[0]));
  CHECK(r.on.replay(r.recording));
  const std::vector<float> first = r.out.values();
  const std::vector<float> other{4, 3, 2, 1};
  r.on.upload(r.in.data(), other.data(), 16);
  CHECK(r.on.replay(r.recording));
  const std::vector<float> second = r.out.values();
  gpu.run(&Table::swiglu, r.call());
  CHECK(second == r.out.values() && second != first);
}

TEST(cuda_recording_refuses_what_it_cannot_hold_and_goes_on) {
  const Graphs on(true);
  EmulatedDevice gpu;
  TestPlan plan(gpu, {-1}, {2}, {-1});
  Recorded r(gpu);
  const Table& t = gpu.table();
  device::Context* c = gpu.context();
  float number = 0;
  void* some = nullptr;
  device::Plan* other = nullptr;
  CHECK(t.begin_recording(c) == Status::ok && t.begin_recording(c) == Status::unsupported);
  CHECK(t.upload(c, r.in.data(), &number, 4) == Status::unsupported && t.fetch(c, &number, r.in.data(), 4) == Status::unsupported);
  CHECK(t.allocate(c, 64, "a test", &some) == Status::unsupported && t.synchronize(c) == Status::unsupported);
  CHECK(t.make_plan(c, &plan.arrays, &other) == Status::unsupported && t.replay(c, r.recording) == Status::unsupported);
  CHECK(t.zero(c, r.out.data(), 8) == Status::ok);
  device::Recording* made = nullptr;
  CHECK(t.end_recording(c, &made) == Status::ok && made);
  CHECK(r.on.replay(r.recording) && r.out.values()[0] != 0);
  CHECK(r.on.replay(made) && r.out.values()[0] == 0);
  r.on.drop_recording(made);
  CHECK(t.end_recording(c, &made) == Status::bad_argument && t.end_recording(c, nullptr) == Status::ok);
  // A recording that cannot be made is none, and what was queued one by one goes on.
  CHECK(!r.on.record([&] { r.on.upload(r.in.data(), &number, 4); }));
  CHECK_THROWS("ABORTED", "stop", r.on.record([] { throw_error("ABORTED", "stop"); }));
  gpu.run(&Table::swiglu, r.call());
  CHECK(r.out.values()[0] != 0);
}

TEST(cuda_recording_ends_with_memory_that_was_there_when_it_began) {
  const Graphs on(true);
  EmulatedDevice gpu;
  auto before = std::make_unique<EmulatedDevice::Array>(gpu.room(8));
  Recorded r(gpu);
  {
    const auto later = gpu.room(8);
  }
  CHECK(r.on.replay(r.recording));  // what came later it cannot have
  before.reset();
  CHECK(!r.on.replay(r.recording));
  CHECK(!r.on.replay(r.recording));
}

TEST(cuda_recording_ends_where_scratch_memory_grows) {
  const Graphs on(true);
  EmulatedDevice gpu;
  const auto draw = [&](int64_t rows) {
    const auto logits = gpu.take(std::vector<float>(size_t(rows), 1.f));
    const auto out = gpu.room(2 * rows);
    const std::vector<device::SampleRow> calls(size_t(rows), {logits.floats(), 0.5, 1, 1});
    gpu.run(&Table::sample, device::SampleCall{rows, 1, calls.data(), out.as<int32_t>(), out.floats() + rows});
  };
  draw(4);
  Recorded r(gpu);
  draw(4);
  CHECK(r.on.replay(r.recording));
  draw(4096);
  CHECK(!r.on.replay(r.recording));
}

TEST(cuda_recording_shows_a_lost_device) {
  const Graphs on(true);
  EmulatedDevice gpu;
  Recorded r(gpu);
  emulator::break_after(0);
  CHECK(r.on.replay(r.recording));  // found by who waits
  CHECK_THROWS("DEVICE_LOST", "new process", r.on.synchronize());
  emulator::mend();
}

TEST(cuda_standing_plan_takes_only_its_sizes) {
  EmulatedDevice gpu;
  TestPlan one(gpu, {-1, -1}, {1, 1}, {-1, -1}), two(gpu, {-1, -1, -1}, {1, 1, 1}, {-1, 0, 0});
  device::PlanArrays a = one.arrays, b = two.arrays;
  a.standing = b.standing = 1;
  device::Plan* plan = nullptr;
  gpu.check(gpu.table().make_plan(gpu.context(), &a, &plan));
  CHECK(gpu.table().renew_plan(gpu.context(), plan, &b) == Status::bad_argument);
  a.standing = 0;
  CHECK(gpu.table().renew_plan(gpu.context(), plan, &a) == Status::bad_argument);
  gpu.table().drop_plan(gpu.context(), plan);
}
