// The CUDA kernels of low-rank products, emulated, against the reference.
#define PLURALIGN_EMULATE_CUDA
#include "cuda/context.h"
#include "cuda_device.h"
#include "ops/lora/lora.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

// A factor of `n` numbers with room for its gradient, on both sides.
struct Weights {
  Weights(EmulatedDevice& gpu, Random& random, int64_t n, bool trained)
      : values(random.normals(n, 0.5)), expected(size_t(n), 0.5f), on(gpu.take(values)), gradient(gpu.take(expected)), trained(trained) {}
  float* host_gradient() { return trained ? expected.data() : nullptr; }
  float* device_gradient() { return trained ? gradient.floats() : nullptr; }
  std::vector<float> values, expected;
  EmulatedDevice::Array on, gradient;
  bool trained;
};

struct Shape {
  int64_t in, out, rank, wide;  // rank: of most adapters; wide: of the fourth
};

// Adapters: plain; a vector in the middle, with the first one's A; a matrix in the middle, with the first one's B; one of
// another rank whose A is frozen; one that leaves the layer alone; one that shares the third one's A and core.
struct Problem {
  Problem(EmulatedDevice& gpu, Shape s, int storage, float dropout, bool residual, const std::vector<int>& parents, const std::vector<int64_t>& lengths, const std::vector<int>& adapters)
      : gpu(gpu), shape(s), storage(storage), residual(residual), random(unsigned(s.in * 100 + s.out * 10 + s.rank)), plan(gpu, parents, lengths, adapters), rows(plan.arrays.rows),
        ldy(s.out + (s.out % 2 ? 3 : 8)), stride(std::max(s.rank, s.wide) + 1), x(storage, random.normals(rows * s.in)), y(residual ? kF32 : storage, random.normals(rows * ldy)),
        dy(random.normals(rows * ldy)), dx(random.normals(rows * s.in)), h(size_t(rows * stride), kNaN) {
    const auto factor = [&](int64_t n, bool trained = true) {
      weights.push_back(std::make_unique<Weights>(gpu, random, n, trained));
      return weights.back().get();
    };
    const int64_t r = s.rank;
    Weights *a = factor(r * s.in), *a2 = factor(r * s.in), *a3 = factor(s.wide * s.in, false), *b = factor(s.out * r), *b2 = factor(s.out * r), *b3 = factor(s.out * s.wide), *vector = factor(r),
            *matrix = factor(r * r);
    const auto add = [&](Weights* down, Weights* up, Weights* core, int64_t rank, int64_t core_rows, float scale) {
      host.push_back({down->values.data(), up->values.data(), core ? core->values.data() : nullptr, down->host_gradient(), up->host_gradient(), core ? core->host_gradient() : nullptr, rank,
                      core_rows, scale, dropout});
      modules.push_back({down->on.floats(), up->on.floats(), core ? core->on.floats() : nullptr, down->device_gradient(), up->device_gradient(), core ? core->device_gradient() : nullptr, rank,
                         core_rows, scale, dropout});
    };
    add(a, b, nullptr, r, 0, 0.8f);
    add(a, b2, vector, r, 1, -1.5f);
    add(a2, b, matrix, r, r, 0.3f);
    add(a3, b3, nullptr, s.wide, 0, 1.1f);
    add(a, b, nullptr, 0, 0, 1.f);
    add(a2, b2, matrix, r, r, 0.7f);
  }

  void run() {
    const std::string where = gpu.name() + " " + std::to_string(shape.in) + " -> " + std::to_string(shape.rank) + "/" + std::to_string(shape.wide) + " -> " + std::to_string(shape.out) + " rows " +
                              std::to_string(rows) + (storage == kF32 ? " float32" : " bfloat16") + (residual ? " residual" : "") + (host[0].dropout > 0 ? " dropout" : "");
    const uint64_t stream = 11;
    std::vector<LoraRange> ranges;
    for (const device::PlanRun& run : plan.runs)
      if (run.adapter >= 0 && host[size_t(run.adapter)].r > 0) ranges.push_back({run.row, run.rows, &host[size_t(run.adapter)], stream});
    const LoraCall reference{ranges, shape.in, shape.out, storage, x.data(), h.data(), stride, plan.keys.data()};
    const auto on_x = gpu.take(x), on_y = gpu.take(y), on_dy = gpu.take(dy), on_dx = gpu.take(dx), on_h = gpu.take(h), on_modules = gpu.take(modules);
    Machine specification(Isa::reference, 1);
    lora_forward(specification.context, reference, y.data(), ldy, residual || storage == kF32);
    lora_backward(specification.context, reference, dy.data(), ldy, dx.data());

    device::LinearCall call{};
    call.plan = plan.get();
    call.rows = rows;
    call.in = shape.in;
    call.h_stride = stride;
    call.x = on_x.data();
    call.storage = storage;
    call.count = 2;  // the first part is another linear's
    call.residual = residual;
    call.adapters = int32_t(modules.size());
    call.dx = on_dx.floats();
    device::LinearPart& part = call.part[1];
    part.out = shape.out;
    part.modules = on_modules.as<LoraModule>();
    part.host_modules = modules.data();
    part.h = on_h.floats();
    part.y = on_y.data();
    part.dy = on_dy.floats();
    part.ldy = ldy;
    part.stream = stream;
    cuda::lora(*gpu.context(), call, 1);
    cuda::lora_backward(*gpu.context(), call, 1);
    // Sums of up to in, out and rows products; in bfloat16, of operands rounded to it, in float32 of another order.
    const double absolute = storage == kF32 ? 1e-5 : 0.02 * std::sqrt(double(std::max({shape.in, shape.out, rows}))), relative = storage == kF32 ? 1e-5 : 0.02;
    CHECK_CLOSE(where + " h", on_h.values(), h, absolute, relative);
    CHECK_CLOSE(where + " y", on_y.typed(int(y.type)).now(), y.now(), absolute, y.type == DType::f32 ? relative : 0.02);
    CHECK_CLOSE(where + " dx", on_dx.values(), dx, absolute, relative);
    for (size_t i = 0; i < weights.size(); ++i) CHECK_CLOSE(where + " gradient " + std::to_string(i), weights[i]->gradient.values(), weights[i]->expected, 2 * absolute, relative);
  }

  EmulatedDevice& gpu;
  Shape shape;
  int storage;
  bool residual;
  Random random;
  TestPlan plan;
  int64_t rows, ldy, stride;
  Typed x, y;
  std::vector<float> dy, dx, h;
  std::vector<std::unique_ptr<Weights>> weights;
  std::vector<LoraModule> host, modules;
};

const std::vector<int> kParents{-1, -1, -1, -1, -1, -1, -1, -1}, kAdapters{0, -1, 1, 2, 4, 3, 5, 0};

}  // namespace

TEST(cuda_lora_matches_the_reference) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int storage : {kF32, kBf16})
      for (bool residual : {true, false})
        for (Shape s : {Shape{7, 5, 1, 3}, Shape{40, 72, 8, 16}, Shape{33, 70, 3, 20}}) Problem(gpu, s, storage, 0, residual, kParents, {5, 1, 7, 1, 3, 2, 4, 6}, kAdapters).run();
    Problem(gpu, {24, 16, 4, 70}, kBf16, 0, false, kParents, {5, 1, 7, 1, 3, 2, 4, 6}, kAdapters).run();
  });
}

TEST(cuda_lora_adds_up_long_runs_and_wide_layers) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int storage : {kF32, kBf16}) {
      Problem(gpu, {16, 8, 4, 4}, storage, 0, false, {-1, -1, -1}, {300, 70, 200}, {0, 1, 0}).run();  // windows of rows
      Problem(gpu, {1100, 1040, 2, 2}, storage, 0, true, {-1, -1}, {2, 1}, {2, 3}).run();             // stretches of the width
    }
    std::vector<int> parents(150, -1), adapters;  // more runs than threads of a block look at together
    for (int i = 0; i < 150; ++i) adapters.push_back(i % 3);
    Problem(gpu, {8, 8, 2, 2}, kF32, 0, false, parents, std::vector<int64_t>(150, 1), adapters).run();
  });
}

TEST(cuda_lora_draws_the_masks_of_the_reference) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int storage : {kF32, kBf16}) Problem(gpu, {140, 17, 3, 5}, storage, 0.4f, false, kParents, {5, 1, 7, 1, 3, 2, 4, 6}, kAdapters).run();
  });
}

TEST(cuda_lora_does_nothing_where_there_is_nothing) {
  on_emulated_device([](EmulatedDevice& gpu) {
    Problem(gpu, {8, 8, 2, 2}, kF32, 0, false, {-1, -1}, {3, 2}, {-1, 4}).run();
    Problem(gpu, {8, 8, 2, 2}, kBf16, 0, false, {-1}, {1}, {1}).run();
  });
}
