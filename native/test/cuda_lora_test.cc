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

// One linear. Adapters: plain; a vector in the middle, with the first one's A; a matrix in the middle, with the first one's B; one
// of another rank whose A is frozen; one that leaves the layer alone; one that shares the third one's A and core.
struct Layer {
  Layer(EmulatedDevice& gpu, Random& random, Shape s, int64_t rows, int y_storage, float dropout, uint64_t stream)
      : out(s.out), ldy(s.out + (s.out % 2 ? 3 : 8)), stream(stream), y(y_storage, random.normals(rows * ldy)), dy(random.normals(rows * ldy)), on_y(gpu.take(y)), on_dy(gpu.take(dy)) {
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
  int64_t out, ldy;
  uint64_t stream;
  Typed y;
  std::vector<float> dy;
  EmulatedDevice::Array on_y, on_dy;
  std::vector<std::unique_ptr<Weights>> weights;
  std::vector<LoraModule> host, modules;
};

// Two linears of different width that share x, and one without adapters between them.
void compare(EmulatedDevice& gpu, Shape s, int storage, float dropout, bool residual, const std::vector<int>& parents, const std::vector<int64_t>& lengths, const std::vector<int>& adapters) {
  const std::string where = gpu.name() + " " + std::to_string(s.in) + " -> " + std::to_string(s.rank) + "/" + std::to_string(s.wide) + " -> " + std::to_string(s.out) +
                            (storage == kF32 ? " float32" : " bfloat16") + (residual ? " residual" : "") + (dropout > 0 ? " dropout" : "");
  Random random(unsigned(s.in * 100 + s.out * 10 + s.rank));
  TestPlan plan(gpu, parents, lengths, adapters);
  const int64_t rows = plan.arrays.rows, stride = std::max(s.rank, s.wide) + 1;
  const Typed x(storage, random.normals(rows * s.in));
  std::vector<float> dx = random.normals(rows * s.in);
  const std::vector<float> no_h(size_t(rows * stride), kNaN);
  const int y_storage = residual ? kF32 : storage;
  Layer first(gpu, random, s, rows, y_storage, dropout, 11), last(gpu, random, {s.in, s.out + 67, s.rank, s.wide}, rows, y_storage, dropout, 12);
  const auto on_x = gpu.take(x), on_dx = gpu.take(dx), on_first = gpu.take(no_h), on_last = gpu.take(no_h), first_modules = gpu.take(first.modules), last_modules = gpu.take(last.modules);
  device::LinearCall call{};
  call.plan = plan.get();
  call.rows = rows;
  call.in = s.in;
  call.h_stride = stride;
  call.x = on_x.data();
  call.storage = storage;
  call.count = 3;
  call.residual = residual;
  call.adapters = int32_t(first.modules.size());
  call.dx = on_dx.floats();
  const auto describe = [&](device::LinearPart& part, Layer& l, const EmulatedDevice::Array& modules, const EmulatedDevice::Array& h) {
    part.out = l.out;
    part.modules = modules.as<LoraModule>();
    part.host_modules = l.modules.data();
    part.h = h.floats();
    part.y = l.on_y.data();
    part.dy = l.on_dy.floats();
    part.ldy = l.ldy;
    part.stream = l.stream;
  };
  describe(call.part[0], first, first_modules, on_first);
  describe(call.part[2], last, last_modules, on_last);
  cuda::lora(*gpu.context(), call);
  cuda::lora_backward(*gpu.context(), call);

  // Sums of up to in, out and rows products; in bfloat16, of operands rounded to it, in float32 of another order.
  const double terms = double(std::max({s.in, s.out, rows})), absolute = storage == kF32 ? 1e-5 * std::max(1.0, std::sqrt(terms) / 10) : 0.02 * std::sqrt(terms), relative = storage == kF32 ? 1e-5 : 0.02;
  Machine specification(Isa::reference, 1);
  for (Layer* l : {&first, &last}) {
    const std::string which = where + (l == &first ? " first" : " last");
    std::vector<LoraRange> ranges;
    for (const device::PlanRun& run : plan.runs)
      if (run.adapter >= 0 && l->host[size_t(run.adapter)].r > 0) ranges.push_back({run.row, run.rows, &l->host[size_t(run.adapter)], l->stream});
    std::vector<float> h = no_h;
    const LoraCall reference{ranges, s.in, l->out, storage, x.data(), h.data(), stride, plan.keys.data()};
    lora_forward(specification.context, reference, l->y.data(), l->ldy, residual || storage == kF32);
    lora_backward(specification.context, reference, l->dy.data(), l->ldy, dx.data());
    CHECK_CLOSE(which + " h", (l == &first ? on_first : on_last).values(), h, absolute, relative);
    CHECK_CLOSE(which + " y", l->on_y.typed(y_storage).now(), l->y.now(), absolute, y_storage == kF32 ? relative : 0.02);
    for (size_t i = 0; i < l->weights.size(); ++i) CHECK_CLOSE(which + " gradient " + std::to_string(i), l->weights[i]->gradient.values(), l->weights[i]->expected, 2 * absolute, relative);
  }
  CHECK_CLOSE(where + " dx", on_dx.values(), dx, 2 * absolute, relative);
}

const std::vector<int> kParents{-1, -1, -1, -1, -1, -1, -1, -1}, kAdapters{0, -1, 1, 2, 4, 3, 5, 0};

}  // namespace

TEST(cuda_lora_matches_the_reference) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int storage : {kF32, kBf16})
      for (bool residual : {true, false})
        for (Shape s : {Shape{7, 5, 1, 3}, Shape{40, 72, 8, 16}, Shape{33, 70, 3, 20}}) compare(gpu, s, storage, 0, residual, kParents, {5, 1, 7, 1, 3, 2, 4, 6}, kAdapters);
    compare(gpu, {24, 16, 4, 70}, kBf16, 0, false, kParents, {5, 1, 7, 1, 3, 2, 4, 6}, kAdapters);
  });
}

TEST(cuda_lora_adds_up_long_runs_and_wide_layers) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int storage : {kF32, kBf16}) {
      compare(gpu, {16, 8, 4, 4}, storage, 0, false, {-1, -1, -1}, {300, 70, 200}, {0, 1, 0});  // windows of rows
      compare(gpu, {1100, 1040, 2, 2}, storage, 0, true, {-1, -1}, {2, 1}, {2, 3});             // stretches of the width
    }
    std::vector<int> parents(150, -1), adapters;  // more runs than threads of a block look at together
    for (int i = 0; i < 150; ++i) adapters.push_back(i % 3);
    compare(gpu, {8, 8, 2, 2}, kF32, 0, false, parents, std::vector<int64_t>(150, 1), adapters);
  });
}

TEST(cuda_lora_draws_the_masks_of_the_reference) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int storage : {kF32, kBf16}) compare(gpu, {140, 17, 3, 5}, storage, 0.4f, false, kParents, {5, 1, 7, 1, 3, 2, 4, 6}, kAdapters);
  });
}

TEST(cuda_lora_does_nothing_where_there_is_nothing) {
  on_emulated_device([](EmulatedDevice& gpu) {
    compare(gpu, {8, 8, 2, 2}, kF32, 0, false, {-1, -1}, {3, 2}, {-1, 4});
    compare(gpu, {8, 8, 2, 2}, kBf16, 0, false, {-1}, {1}, {1});
  });
}

TEST(cuda_lora_of_a_row_does_not_depend_on_company) {
  EmulatedDevice gpu;
  const int64_t in = 1100, out = 40, r = 4, alone = 3;
  for (int storage : {kF32, kBf16}) {
    Random random(9);
    Weights a(gpu, random, r * in, true), b(gpu, random, out * r, true);
    const std::vector<LoraModule> modules{{a.on.floats(), b.on.floats(), nullptr, nullptr, nullptr, nullptr, r, 0, 0.8f, 0.f}};
    const auto on_modules = gpu.take(modules);
    const std::vector<float> x = random.normals(73 * in), dy = random.normals(73 * out);
    // The last `alone` rows, behind 70 others of the same adapter or by themselves.
    const auto last_rows = [&](int64_t before) {
      std::vector<int64_t> lengths{before, alone};
      if (before == 0) lengths.erase(lengths.begin());
      const int64_t rows = before + alone;
      TestPlan plan(gpu, std::vector<int>(lengths.size(), -1), lengths, std::vector<int>(lengths.size(), 0));
      const auto on_x = gpu.take(Typed(storage, std::vector<float>(x.end() - rows * in, x.end()))), y = gpu.take(Typed(storage, std::vector<float>(size_t(rows * out), 0.f)));
      const auto on_dy = gpu.take(std::vector<float>(dy.end() - rows * out, dy.end())), dx = gpu.take(std::vector<float>(size_t(rows * in), 0.f)), h = gpu.room(rows * r);
      device::LinearCall call{};
      call.plan = plan.get();
      call.rows = rows;
      call.in = in;
      call.h_stride = r;
      call.x = on_x.data();
      call.storage = storage;
      call.count = call.adapters = 1;
      call.dx = dx.floats();
      device::LinearPart& part = call.part[0];
      part.out = part.ldy = out;
      part.modules = on_modules.as<LoraModule>();
      part.host_modules = modules.data();
      part.h = h.floats();
      part.y = y.data();
      part.dy = on_dy.floats();
      cuda::lora(*gpu.context(), call);
      cuda::lora_backward(*gpu.context(), call);
      std::vector<double> result = y.typed(storage).now();
      result.erase(result.begin(), result.end() - alone * out);
      const std::vector<float> d = dx.values();
      result.insert(result.end(), d.end() - alone * in, d.end());
      return result;
    };
    CHECK_BITS(storage == kF32 ? "float32" : "bfloat16", last_rows(70), last_rows(0));
  }
}
