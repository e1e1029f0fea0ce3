// The CUDA kernels of the head, emulated, against the reference.
#include "cuda_device.h"
#include "ops/head/head.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

struct Case {
  int64_t rows, width, vocabulary;
  int storage;
  DType weight;
  double spread;
  float scale;
};

void compare(EmulatedDevice& gpu, const Case& c) {
  const std::string where = gpu.name() + " " + std::to_string(c.rows) + " x " + std::to_string(c.width) + " of " + std::to_string(c.vocabulary) + (c.storage == kF32 ? " float32" : " bfloat16");
  Random random(unsigned(c.rows * 100 + c.width));
  const int64_t ld = c.width + 8;
  const Typed hidden(c.storage, random.normals(c.rows * ld)), weight(c.weight, random.normals(c.vocabulary * c.width, c.spread));
  const std::vector<float> dlogps = random.normals(c.rows);
  const size_t n = size_t(c.rows);
  // Segments of at most 300 rows each read every row once: readouts are the rows.
  std::vector<int64_t> lengths;
  for (int64_t left = c.rows; left > 0; left -= lengths.back()) lengths.push_back(std::min<int64_t>(left, 300));
  TestPlan plan(gpu, std::vector<int>(lengths.size(), -1), lengths, std::vector<int>(lengths.size(), -1), c.vocabulary);

  // Operands as the kernels take them: in bfloat16 the weight is rounded too.
  const Typed taken(c.storage == kBf16 ? DType::bf16 : c.weight, std::vector<float>(weight.values.begin(), weight.values.end()));
  Head h{c.rows, c.width, c.vocabulary, matrix(hidden.data(), hidden.type, ld), taken.data(), taken.type, plan.targets.data(), c.scale};
  Machine specification(Isa::reference, 1);
  std::vector<float> logps(n, kNaN), squares(n, kNaN), dhidden(size_t(c.rows * c.width), 0.f), dweight(weight.values.size(), 0.5f);
  std::vector<Partition> partition(n);
  head_logps(specification.context, h, logps.data(), partition.data(), squares.data());
  head_backward(specification.context, h, partition.data(), dlogps.data(), dhidden.data(), dweight.data());

  const auto on_hidden = gpu.take(hidden), on_weight = gpu.take(weight), on_d = gpu.take(dlogps), on_logps = gpu.room(c.rows), on_squares = gpu.room(c.rows), on_partition = gpu.room(4 * c.rows),
             on_dhidden = gpu.room(c.rows * c.width), on_dweight = gpu.take(std::vector<float>(dweight.size(), 0.5f));
  device::HeadCall call{};
  call.plan = plan.get();
  call.hidden = {on_hidden.data(), hidden.type, 0, c.rows, c.width, ld};
  call.weight = {on_weight.data(), c.weight, 0, c.vocabulary, c.width, c.width};
  call.scale = c.scale;
  call.logps = on_logps.floats();
  call.partition = on_partition.as<double>();
  call.squares = on_squares.floats();
  call.dlogps = on_d.floats();
  call.dhidden = on_dhidden.floats();
  call.dweight = on_dweight.floats();
  gpu.run(&device::Table::head, call);
  gpu.run(&device::Table::head_backward, call);
  const std::vector<double> parts = on_partition.values<double>();
  std::vector<double> tops, sums, tops_expected, sums_expected;
  for (size_t i = 0; i < n; ++i) {
    tops.push_back(parts[2 * i]);
    sums.push_back(parts[2 * i + 1]);
    tops_expected.push_back(partition[i].maximum);
    sums_expected.push_back(partition[i].sum);
  }
  const bool large = c.spread > 100;
  CHECK_CLOSE(where, on_logps.values(), logps, large ? 0.02 : 5e-6, 1e-6);
  CHECK_CLOSE(where + " maximum", tops, tops_expected, 1e-6, 2e-6);
  CHECK_CLOSE(where + " sum", sums, sums_expected, 1e-6, large ? 0.02 : 1e-5);
  CHECK_CLOSE(where + " squares", on_squares.values(), squares, 1e-7, large ? 0.02 : 1e-5);
  // In bfloat16 the gradients of logits are rounded too.
  const double absolute = c.storage == kF32 ? 2e-5 : 0.03, relative = c.storage == kF32 ? 1e-5 : 0.01;
  CHECK_CLOSE(where + " dhidden", on_dhidden.values(), dhidden, absolute * std::max(1.0, c.spread), relative);
  CHECK_CLOSE(where + " dweight", on_dweight.values(), dweight, absolute, large ? 0.02 : relative);
  // Without squares and the weight's gradient the rest is the same.
  call.squares = call.dweight = nullptr;
  const std::vector<float> before = on_dhidden.values(), logps_before = on_logps.values();
  gpu.run(&device::Table::head, call);
  gpu.run(&device::Table::head_backward, call);
  CHECK_BITS(where, on_logps.values(), logps_before);
  CHECK_BITS(where, on_dhidden.values(), before);
}

}  // namespace

TEST(cuda_head_matches_the_reference) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int storage : {kF32, kBf16})
      for (DType weight : {DType::f32, DType::bf16})
        for (Case c : {Case{0, 4, 7, storage, weight, 0.5, 1}, Case{1, 1, 1, storage, weight, 0.5, 1}, Case{3, 9, 70, storage, weight, 0.5, 1.6f}, Case{5, 16, 600, storage, weight, 0.5, 1}}) compare(gpu, c);
    compare(gpu, {4, 8, 300, kF32, DType::f32, 3000, 1});
  });
}

TEST(cuda_head_goes_through_chunks) {
  EmulatedDevice gpu(emulator::Order::shuffled);
  for (int storage : {kF32, kBf16}) compare(gpu, {2, 3, 16384 + 70, storage, DType::bf16, 1, 1});  // of columns
  compare(gpu, {2051, 2, 5, kF32, DType::f32, 1, 1});                                              // of rows
}
