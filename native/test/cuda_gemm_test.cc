// Our own CUDA products, emulated, against float64.
#define PLURALIGN_EMULATE_CUDA
#include "cuda/context.h"
#include "cuda_device.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

struct Case {
  int64_t m, n, k;
  bool bias, accumulate;
  int64_t room = 3;  // between rows, beyond their length
};

void compare(EmulatedDevice& gpu, const Case& c, bool turn_a, bool turn_b, int storage, int out) {
  Random random(unsigned(c.m * 100 + c.n * 10 + c.k));
  const int64_t lda = (turn_a ? c.m : c.k) + c.room, ldb = (turn_b ? c.k : c.n) + c.room, ldc = c.n + c.room;
  const Typed a(storage, random.normals((turn_a ? c.k : c.m) * lda)), b(storage, random.normals((turn_b ? c.n : c.k) * ldb)), before(out, random.normals(c.m * ldc));
  const std::vector<float> bias = random.normals(c.n);
  const auto on_a = gpu.take(a), on_b = gpu.take(b), on_bias = gpu.take(bias), on_c = gpu.take(before);
  const auto type = [](int s) { return s == kF32 ? DType::f32 : DType::bf16; };
  cuda::own_product(*gpu.context(), {c.m, c.n, c.k, on_a.data(), on_b.data(), type(storage), type(storage), type(out), turn_a, turn_b, lda, ldb, ldc, on_c.data(), 0.7f,
                                     c.bias ? on_bias.floats() : nullptr, c.accumulate});
  std::vector<double> expected = before.values;
  for (int64_t i = 0; i < c.m; ++i)
    for (int64_t j = 0; j < c.n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < c.k; ++p) sum += a.values[size_t(turn_a ? p * lda + i : i * lda + p)] * b.values[size_t(turn_b ? j * ldb + p : p * ldb + j)];
      double& to = expected[size_t(i * ldc + j)];
      to = (c.accumulate ? to : 0) + double(0.7f) * sum + (c.bias ? bias[size_t(j)] : 0);
    }
  const std::string where = gpu.name() + " " + std::to_string(c.m) + " x " + std::to_string(c.n) + " x " + std::to_string(c.k) + (turn_a ? " Aᵀ" : "") + (turn_b ? " Bᵀ" : "") +
                            (storage == kF32 ? " float32" : " bfloat16");
  CHECK_CLOSE(where, on_c.typed(out).now(), expected, 2e-6 * std::sqrt(double(c.k + 1)) * 8, out == kF32 ? 2e-6 : 0.0041);
}

}  // namespace

TEST(cuda_gemm_matches_float64) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int storage : {kF32, kBf16})
      for (bool turn_a : {false, true})
        for (bool turn_b : {false, true}) {
          compare(gpu, {1, 1, 1, false, false}, turn_a, turn_b, storage, kF32);
          compare(gpu, {70, 75, 37, true, turn_a}, turn_a, turn_b, storage, kF32);
          compare(gpu, {24, 40, 104, turn_b, true, 8}, turn_a, turn_b, storage, kBf16);  // rows aligned to 16 bytes
          if (storage == kBf16) compare(gpu, {136, 128, 104, false, false, 8}, turn_a, turn_b, storage, kF32);  // whole tiles
        }
  });
}

TEST(cuda_gemm_takes_several_tiles_and_shares_of_k) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (int storage : {kF32, kBf16}) {
      compare(gpu, {140, 133, 40, false, false}, false, true, storage, kF32);
      compare(gpu, {9, 17, 1100, true, true, 0}, false, true, storage, kBf16);
      compare(gpu, {5, 6, 0, true, false}, false, false, storage, kF32);
      compare(gpu, {0, 6, 4, false, false}, false, false, storage, kF32);
    }
    compare(gpu, {64 * 9 + 1, 70, 2, false, false}, false, true, kF32, kF32);  // more rows of tiles than a group has
  });
}
