// The emulator itself: that it does what CUDA does, and that it notices what it is there to notice.
#define PLURALIGN_EMULATE_CUDA
#include "cuda/device.cuh"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;
using namespace pluralign::cuda;

namespace {

__global__ void exchange_kernel(int* out) {
  const int lane = int(threadIdx.x) % kWarp;
  int* mine = out + (int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 6;
  mine[0] = __shfl_xor_sync(kAllLanes, int(threadIdx.x), 5);
  mine[1] = __shfl_down_sync(kAllLanes, lane, 3);
  mine[2] = __shfl_sync(kAllLanes, lane, 9, 8);
  mine[3] = int(__ballot_sync(kAllLanes, lane % 3 == 0));
  mine[4] = lane < 16 ? __shfl_xor_sync(0x0000ffffu, lane, 1) : __shfl_xor_sync(0xffff0000u, lane, 2);
  mine[5] = int(warp_sum(float(lane)));
}

// Neighbours swap through shared memory; without the barrier the result depends on who runs first.
__global__ void swap_kernel(int* out, bool careful) {
  SharedMemory shared;
  int* room = shared.take<int>(blockDim.x);
  room[threadIdx.x] = int(threadIdx.x) * 10;
  if (careful) __syncthreads();
  out[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}

__global__ void stuck_kernel() {
  if (threadIdx.x % 2) __syncthreads();
  else __shfl_sync(kAllLanes, 1, 0);
}

__global__ void beyond_kernel() { SharedMemory().take<int>(4)[4] = 1; }

__global__ void copy_kernel(uint16_t* out, const uint16_t* in, bool wait) {
  SharedMemory shared;
  uint16_t* tile = shared.take<uint16_t>(256);
  copy_async(tile + threadIdx.x * 8, in + threadIdx.x * 8, threadIdx.x != 3);
  commit_copies();
  if (wait) wait_copies<0>();
  __syncthreads();
  for (int i = 0; i < 8; ++i) out[threadIdx.x * 8 + i] = tile[threadIdx.x * 8 + i];
}

// C [16 × 8] = A [16 × 16] B [16 × 8], A and B row major in global memory: fragments by ldmatrix.
__global__ void product_kernel(float* c, const bf16* a, const bf16* b) {
  SharedMemory shared;
  bf16 *at = shared.take<bf16>(256), *bt = shared.take<bf16>(256);
  for (int i = int(threadIdx.x); i < 256; i += kWarp) {
    at[i] = a[i];
    bt[i] = i % 16 < 8 ? b[i / 16 * 8 + i % 16] : bf16{0};
  }
  __syncthreads();
  uint32_t fa[4], fb[4];
  const int l = int(threadIdx.x);
  load_matrices(fa, at + (l % 8 + l / 8 % 2 * 8) * 16 + l / 16 * 8);
  load_matrices_transposed(fb, bt + (l % 8 + l / 8 % 2 * 8) * 16 + l / 16 * 8);
  float sums[4] = {0, 0, 0, 0};
  mma_bf16(sums, fa, {fb[0], fb[1]});
  for (int i = 0; i < 4; ++i) c[(l / 4 + i / 2 * 8) * 8 + l % 4 * 2 + i % 2] = sums[i];
}

void in_order(emulator::Order order, const std::function<void()>& body) {
  emulator::order = order;
  try {
    body();
  } catch (...) {
    emulator::order = emulator::Order::forward;
    throw;
  }
  emulator::order = emulator::Order::forward;
}

const std::vector<emulator::Order> kOrders{emulator::Order::forward, emulator::Order::backward, emulator::Order::shuffled};

bool complains(const char* part, const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& e) {
    return std::string(e.what()).find(part) != std::string::npos;
  }
  return false;
}

}  // namespace

TEST(cuda_emulator_exchanges_between_lanes) {
  for (const emulator::Order order : kOrders) {
    std::vector<int> out(2 * 64 * 6, -1);
    int* at = out.data();
    in_order(order, [&] { PLURALIGN_LAUNCH(exchange_kernel, 2, 64, 0, nullptr, at); });
    for (int t = 0; t < 128; ++t) {
      const int lane = t % 32, *mine = at + t * 6;
      CHECK(mine[0] == (t % 64 ^ 5) && mine[1] == (lane + 3 < 32 ? lane + 3 : lane) && mine[2] == (lane / 8 * 8 + 1));
      CHECK(mine[3] == 0x49249249 && mine[4] == (lane < 16 ? lane ^ 1 : lane ^ 2) && mine[5] == 31 * 16);
    }
  }
}

TEST(cuda_emulator_shows_a_missing_barrier) {
  std::vector<std::vector<int>> results;
  for (const emulator::Order order : kOrders)
    for (const bool careful : {true, false}) {
      results.emplace_back(64);
      int* at = results.back().data();
      in_order(order, [&] { PLURALIGN_LAUNCH(swap_kernel, 1, 64, 64 * 4, nullptr, at, careful); });
      if (careful)
        for (int t = 0; t < 64; ++t) CHECK(at[t] == (63 - t) * 10);
    }
  CHECK(results[1] != results[3]);
}

TEST(cuda_emulator_notices_deadlocks_and_overruns) {
  CHECK(complains("is stuck", [] { PLURALIGN_LAUNCH(stuck_kernel, 1, 64, 0, nullptr); }));
  CHECK(complains("beyond its shared memory", [] { PLURALIGN_LAUNCH(beyond_kernel, 1, 32, 16, nullptr); }));
  CHECK(!complains("", [] { PLURALIGN_LAUNCH(beyond_kernel, 1, 32, 32, nullptr); }));
}

TEST(cuda_emulator_copies_when_they_are_waited_for) {
  std::vector<uint16_t> in(256), out(256), early(256);
  for (size_t i = 0; i < in.size(); ++i) in[i] = uint16_t(i + 1);
  uint16_t *to = out.data(), *to_early = early.data();
  const uint16_t* from = in.data();
  PLURALIGN_LAUNCH(copy_kernel, 1, 32, 512, nullptr, to, from, true);
  PLURALIGN_LAUNCH(copy_kernel, 1, 32, 512, nullptr, to_early, from, false);
  for (size_t i = 0; i < in.size(); ++i) CHECK(out[i] == (i / 8 == 3 ? 0 : in[i]) && early[i] == 0xffff);
}

TEST(cuda_emulator_multiplies_as_tensor_cores_do) {
  Random random(3);
  const Typed a(kBf16, random.normals(256)), b(kBf16, random.normals(128));
  std::vector<uint16_t> a_bits(256), b_bits(128);
  std::memcpy(a_bits.data(), a.data(), 512);
  std::memcpy(b_bits.data(), b.data(), 256);
  std::vector<float> c(128);
  float* to = c.data();
  const bf16 *pa = reinterpret_cast<const bf16*>(a_bits.data()), *pb = reinterpret_cast<const bf16*>(b_bits.data());
  PLURALIGN_LAUNCH(product_kernel, 1, 32, 1024, nullptr, to, pa, pb);
  std::vector<double> expected(128);
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 0; j < 8; ++j)
      for (size_t k = 0; k < 16; ++k) expected[i * 8 + j] += a.values[i * 16 + k] * b.values[k * 8 + j];
  CHECK_CLOSE("product", c, expected, 1e-5, 1e-5);
}
