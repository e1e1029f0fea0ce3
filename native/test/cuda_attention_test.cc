// The CUDA kernels of attention, emulated, against float64 over forests.
#include "cuda_device.h"
#include "device/device.h"
#include "forest.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

// The forest's arrays without the columns between its rows.
std::vector<float> rows_of(const Forest& f, const std::vector<float>& v) {
  std::vector<float> out;
  const int64_t width = (f.shape.heads + 2 * f.shape.kv_heads) * f.shape.head_dim;
  for (int64_t r = 0; r < f.rows; ++r) out.insert(out.end(), v.begin() + r * f.stride, v.begin() + r * f.stride + width);
  return out;
}

struct Outcome {
  std::vector<double> out;
  std::vector<float> dqkv;
};

Outcome attend(EmulatedDevice& gpu, const Forest& f, int storage) {
  const AttentionShape& s = f.shape;
  TestPlan plan(gpu, f.parents, f.lengths, std::vector<int>(f.parents.size(), -1));
  const auto qkv = gpu.take(rows_of(f, f.x)), dout = gpu.take(f.dout), lse = gpu.room(f.rows * s.heads), dqkv = gpu.room(f.rows * (s.heads + 2 * s.kv_heads) * s.head_dim);
  const auto out = gpu.take(Typed(storage, size_t(f.rows * f.out_width())));
  const device::AttentionCall call{plan.get(), s.heads, s.kv_heads, s.head_dim, s.window, s.scale, storage, qkv.floats(), out.data(), lse.floats()};
  gpu.run(&device::Table::attention, call);
  gpu.run(&device::Table::attention_backward, device::AttentionBackwardCall{call, dout.floats(), dqkv.floats()});
  return {out.typed(storage).now(), dqkv.values()};
}

void compare(EmulatedDevice& gpu, const Forest& f, int storage) {
  const AttentionShape& s = f.shape;
  const std::string where = gpu.name() + " heads " + std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " dim " + std::to_string(s.head_dim) + " window " + std::to_string(s.window) +
                            " rows " + std::to_string(f.rows) + (storage == kF32 ? " float32" : " bfloat16");
  const Outcome r = attend(gpu, f, storage);
  const std::vector<double> d = f.backward(doubles(f.x));
  CHECK_CLOSE(where, r.out, f.forward(doubles(f.x)), storage == kF32 ? 3e-6 : 0.03, storage == kF32 ? 1e-5 : 0.02);
  CHECK_CLOSE(where + " backward", r.dqkv, rows_of(f, {d.begin(), d.end()}), storage == kF32 ? 2e-5 : 0.12, storage == kF32 ? 2e-5 : 0.03);
}

AttentionShape shape(int64_t heads, int64_t kv_heads, int64_t dim, int64_t window) { return {heads, kv_heads, dim, float(1 / std::sqrt(double(dim))), window}; }

// prompt → two children → a grandchild; a root of one row; one of more rows than a tile has.
const std::vector<int> kParents{-1, 0, 0, 2, -1, -1, 5};
const std::vector<int64_t> kLengths{5, 3, 21, 4, 1, 67, 2};

}  // namespace

TEST(cuda_attention_matches_float64) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int storage : {kF32, kBf16}) {
      for (const AttentionShape& s : {shape(2, 2, 12, 0), shape(3, 1, 16, 17)}) compare(gpu, Forest(s, kParents, kLengths, 1), storage);
      compare(gpu, Forest(shape(2, 1, 8, 1), {-1, 0, 0}, {3, 2, 4}, 2), storage);
      compare(gpu, Forest(shape(4, 2, 80, 3), {-1, 0, -1}, {7, 2, 1}, 3), storage);
      compare(gpu, Forest(shape(1, 1, 5, 0), {-1}, {1}, 4), storage);
    }
  });
}

TEST(cuda_attention_sees_long_paths_through_windows) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int64_t window : {0, 70}) compare(gpu, Forest(shape(1, 1, 8, window), {-1, 0, 1, 1}, {60, 75, 9, 70}, 5), kBf16);
    compare(gpu, Forest(shape(1, 1, 8, 40), {-1, 0, 1, 1}, {30, 45, 9, 20}, 6), kF32);
  });
}

TEST(cuda_attention_stays_finite_with_large_scores) {
  EmulatedDevice gpu;
  Forest f({2, 1, 8, 1.f, 0}, {-1, 0}, {9, 30}, 2);
  for (float& x : f.x) x *= 30;  // scores in the thousands: one key takes all
  CHECK_CLOSE(gpu.name(), attend(gpu, f, kF32).out, f.forward(doubles(f.x)), 0.05, 1e-3);
}

TEST(cuda_attention_of_a_row_does_not_depend_on_packing) {
  EmulatedDevice gpu;
  for (int storage : {kF32, kBf16})
    for (int64_t window : {0, 17}) {
      const Forest f(shape(2, 1, 8, window), kParents, kLengths, 7);
      const Outcome together = attend(gpu, f, storage);
      for (size_t s : {size_t(3), size_t(6)})
        for (bool whole : {true, false}) {
          const Outcome alone = attend(gpu, f.alone(s, whole), storage);
          const int64_t n = f.lengths[s] * f.out_width(), at = f.starts[s] * f.out_width();
          CHECK_BITS("segment " + std::to_string(s), std::vector<double>(alone.out.end() - n, alone.out.end()), std::vector<double>(together.out.begin() + at, together.out.begin() + at + n));
        }
    }
}

TEST(cuda_attention_refuses_wide_heads_by_name) {
  EmulatedDevice gpu;
  const TestPlan plan(gpu, {-1}, {2}, {-1});
  const auto qkv = gpu.room(2 * 3 * 160), out = gpu.room(2 * 160), lse = gpu.room(2);
  const device::AttentionCall call{plan.get(), 1, 1, 160, 0, 0.1f, kF32, qkv.floats(), out.data(), lse.floats()};
  CHECK_THROWS("UNSUPPORTED", "these have 160", Device(gpu.table(), gpu.context()).run(&device::Table::attention, call));
}
