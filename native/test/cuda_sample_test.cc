// Draws of the emulated CUDA library beside the host's.
#include "cuda_device.h"
#include "ops/sample/sample.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> logps;
};

Drawn draw(EmulatedDevice& gpu, const std::vector<std::vector<float>>& rows, const std::vector<double>& u, const std::vector<float>& temperatures) {
  std::vector<EmulatedDevice::Array> arrays;
  std::vector<device::SampleRow> calls;
  for (size_t i = 0; i < rows.size(); ++i) {
    arrays.push_back(gpu.take(rows[i]));
    calls.push_back({arrays[i].floats(), u[i], temperatures[i] > 0 ? 1.f / temperatures[i] : 1.f, !(temperatures[i] > 0)});
  }
  const auto n = int64_t(rows.size());
  const auto tokens = gpu.room(n), logps = gpu.room(n);
  gpu.run(&device::Table::sample, device::SampleCall{n, int64_t(rows[0].size()), calls.data(), tokens.as<int32_t>(), logps.floats()});
  return {tokens.values<int32_t>(), logps.values()};
}

}  // namespace

TEST(cuda_sample_draws_what_the_host_draws) {
  on_emulated_device([](EmulatedDevice& gpu) {
    Machine machine(Isa::reference, 1);
    Random random(4);
    SampleScratch scratch;
    for (const int64_t n : {1, 2, 31, 512, 513, 1100, 5003}) {
      std::vector<std::vector<float>> rows;
      std::vector<float> temperatures;
      std::vector<double> u;
      std::vector<Sample> expected;
      for (uint32_t seed = 0; seed < 24; ++seed) {
        rows.push_back(random.normals(size_t(n)));
        for (float& x : rows.back()) {
          x *= seed % 3 == 0 ? 30.f : 2.f;
          if (seed % 4 == 1 && random.below(3) == 0) x = -INFINITY;
        }
        rows.back()[size_t(random.below(uint32_t(n)))] = seed % 5 == 2 ? 200.f : 3.f;
        temperatures.push_back(seed % 6 == 5 ? 0.f : seed % 2 ? 1.f : 0.6f);
        u.push_back(sample_place(seed, 7));
        SampleOptions options;
        options.temperature = temperatures.back();
        expected.push_back(sample(machine.context.kernels, rows.back().data(), n, options, seed, 7, {}, scratch));
      }
      const Drawn found = draw(gpu, rows, u, temperatures);
      for (size_t i = 0; i < rows.size(); ++i) {
        CHECK(found.tokens[i] == expected[i].token);
        CHECK_NEAR(found.logps[i], expected[i].logp, 1e-5 + 1e-6 * std::abs(double(expected[i].logp)));
      }
    }
  });
}

TEST(cuda_sample_follows_the_distribution_at_its_ends) {
  EmulatedDevice gpu;
  // Ids 3 and 700 alone have any probability, a quarter and three quarters; ties are the lower id's.
  std::vector<float> row(900, -INFINITY), tie(900, 1.f);
  row[3] = 0.f;
  row[700] = std::log(3.f);
  const double last = 1 - 0x1p-53;
  const Drawn d = draw(gpu, {row, row, row, row, row, tie, tie}, {0, 0.24, 0.26, 0.99, last, 0, last}, {1, 1, 1, 1, 1, 0, 1});
  CHECK((d.tokens == std::vector<int32_t>{3, 3, 700, 700, 700, 0, 899}));
  CHECK_NEAR(d.logps[0], std::log(0.25), 1e-6);
  CHECK_NEAR(d.logps[3], std::log(0.75), 1e-6);
}

TEST(cuda_sample_gives_damaged_rows_back) {
  EmulatedDevice gpu;
  std::vector<float> nan(600, 1.f), infinite(600, 1.f), none(600, -INFINITY), sound(600, 1.f);
  nan[599] = kNaN;
  infinite[0] = INFINITY;
  const Drawn d = draw(gpu, {nan, infinite, none, sound}, {0.5, 0.5, 0.5, 0.5}, {1, 0, 1, 1});
  CHECK(d.tokens[0] == -1 && d.tokens[1] == -1 && d.tokens[2] == -1 && d.tokens[3] == 300);
  const device::SampleCall empty{0, 600, nullptr, nullptr, nullptr};
  gpu.run(&device::Table::sample, empty);
}
