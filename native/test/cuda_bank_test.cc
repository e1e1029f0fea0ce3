// Steps taken on the emulated CUDA library, where factors, gradients and moments stay, beside the CPU's.
#include "cuda_device.h"
#include "ops/adamw/adamw.h"
#include "tiny_model.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

const TinyOptions kModel{0, false, false, true, true, 0};

// Parameters and moments of a bank, and what a step over two packs of rows makes of them.
struct Trained {
  explicit Trained(Tiny& t) : tiny(t), bank(t.bank()), model(t.config, Weights::none(t.config), false), m(t.values.size(), 0.1f), v(t.values.size(), 0.2f) {
    for (const Factor& f : tiny.factors) {  // all but every fifth factor; decay of some
      const auto i = &f - tiny.factors.data();
      if (i % 5 == 4) continue;
      step.spans.insert(step.spans.end(), {f.offset, f.offset + f.rows * f.cols});
      step.steps.push_back(0);
      step.decay.push_back(i % 3 == 0);
    }
    step.learning_rate = 1e-2, step.beta1 = 0.9, step.beta2 = 0.99, step.eps = 1e-8, step.weight_decay = 0.1, step.max_norm = 0.5;
  }
  void gradients(const Device& device) {
    const TinyPack p = forest_pack(true);
    std::vector<float> out(p.rows.size());
    for (int pack = 0; pack < 2; ++pack) {
      model.score(device, p.pack(), &bank, {false, true, false, 0, 1}, out.data(), nullptr, Cancel());
      model.backward(device, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
    }
  }
  void advance() {
    for (int32_t& s : step.steps) ++s;
  }
  // As lib/adapters/bank.ts does where the bank is at home.
  std::vector<double> at_home(Context& cpu, const Device& device) {
    std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
    gradients(device);
    advance();
    std::vector<double> norms;
    double total = 0;
    for (size_t i = 0; i < step.steps.size(); ++i) {
      double sum = 0;
      for (int64_t k = step.spans[2 * i]; k < step.spans[2 * i + 1]; ++k) sum += double(tiny.gradients[size_t(k)]) * double(tiny.gradients[size_t(k)]);
      norms.push_back(std::sqrt(sum));
      total += sum;
    }
    const double scale = std::min(1.0, step.max_norm / (std::sqrt(total) + 1e-6));
    for (size_t i = 0; i < step.steps.size(); ++i) {
      const size_t at = size_t(step.spans[2 * i]);
      adamw(cpu, tiny.values.data() + at, tiny.gradients.data() + at, m.data() + at, v.data() + at, step.spans[2 * i + 1] - int64_t(at),
            adamw_step(step.learning_rate, step.beta1, step.beta2, step.eps, step.decay[i] ? step.weight_decay : 0, scale, step.steps[i]));
    }
    return norms;
  }
  std::vector<double> away(const Device& device) {
    bank.on(device).clear(step.spans);
    gradients(device);
    advance();
    return bank.on(device).step(step);
  }
  Tiny& tiny;
  Bank bank;
  Model model;
  std::vector<float> m, v;
  PlacedBank::Step step;
};

}  // namespace

TEST(cuda_squared_norms_are_the_spans_own) {
  on_emulated_device([](EmulatedDevice& gpu) {
    Random random(3);
    std::vector<float> g = random.normals(70000);
    const std::vector<int64_t> spans{0, 0, 0, 1, 5, 40000, 40000, 69999, 69999, 70000, 70000, 70000};
    const auto array = gpu.take(g);
    const auto sums = gpu.room(2 * 6);
    gpu.run(&device::Table::squared_norms, device::SquaredNormsCall{array.floats(), 6, spans.data(), sums.as<double>()});
    const std::vector<double> found = sums.values<double>();
    for (size_t i = 0; i < 6; ++i) {
      double sum = 0;
      for (int64_t k = spans[2 * i]; k < spans[2 * i + 1]; ++k) sum += double(g[size_t(k)]) * double(g[size_t(k)]);
      CHECK_NEAR(found[i], sum, 1e-12 * sum);
    }
    gpu.run(&device::Table::squared_norms, device::SquaredNormsCall{array.floats(), 0, nullptr, nullptr});
  });
}

TEST(cuda_bank_takes_the_cpus_steps_on_the_device) {
  EmulatedDevice gpu(emulator::Order::shuffled);
  const Device device(gpu.table(), gpu.context());
  Machine machine(Isa::generic, 1);
  Tiny one(kModel), other(kModel);
  Trained there(one), here(other);
  const std::vector<float> untouched = one.values;
  there.bank.on(device).take_over(there.m.data(), there.v.data());
  for (int step = 0; step < 3; ++step) {
    const auto mine = there.away(device), theirs = here.at_home(machine.context, machine.context);
    for (size_t i = 0; i < mine.size(); ++i) CHECK_NEAR(mine[i], theirs[i], 1e-4 * theirs[i] + 1e-6);
  }
  CHECK_BITS("the host's, until they come home", one.values, untouched);
  CHECK_THROWS("BAD_ARGUMENT", "another device", there.gradients(machine.context));
  there.bank.on(device).send_home(there.m.data(), there.v.data());
  CHECK_CLOSE("parameters", one.values, other.values, 1e-5, 1e-4);
  CHECK_CLOSE("m", there.m, here.m, 1e-5, 1e-3);
  CHECK_CLOSE("v", there.v, here.v, 1e-5, 1e-3);
  for (size_t i = 0; i < one.factors.size(); ++i)  // what takes no part stays to the bit, moments too
    if (i % 5 == 4) CHECK(one.values[size_t(one.factors[i].offset)] == untouched[size_t(one.factors[i].offset)] && there.m[size_t(one.factors[i].offset)] == 0.1f);
  CHECK_THROWS("BAD_ARGUMENT", "at home", there.bank.on(device).step(there.step));

  // Away again, from what came home; and with no limit of the norm.
  there.step.max_norm = here.step.max_norm = INFINITY;
  there.bank.on(device).take_over(there.m.data(), there.v.data());
  there.away(device);
  here.at_home(machine.context, machine.context);
  there.bank.on(device).send_home(there.m.data(), there.v.data());
  CHECK_CLOSE("parameters", one.values, other.values, 1e-5, 1e-4);
}

TEST(cuda_bank_takes_no_step_by_gradients_that_are_not_finite) {
  EmulatedDevice gpu;
  const Device device(gpu.table(), gpu.context());
  Tiny tiny(kModel);
  Trained trained(tiny);
  PlacedBank& placed = trained.bank.on(device);
  placed.take_over(nullptr, nullptr);
  placed.clear(trained.step.spans);
  device.upload(placed.gradient(7), &kNaN, 4);
  trained.advance();
  const std::vector<double> norms = placed.step(trained.step);
  CHECK(std::isnan(norms[6]) && norms[0] == 0);  // of factor 7: factor 4 takes no part
  const std::vector<float> before = tiny.values;
  placed.send_home(trained.m.data(), trained.v.data());
  CHECK_BITS("parameters", tiny.values, before);
  for (float x : trained.m) CHECK(x == 0);
}
