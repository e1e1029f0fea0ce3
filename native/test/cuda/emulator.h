// CUDA's execution model on the CPU, for tests: kernels are compiled as C++ and every thread of a block is a fiber, so that
// barriers, shuffles and matrix products happen exactly where the kernel puts them. Blocks run one after another on the
// calling thread. What it looks for: threads that wait for each other for ever, shared memory written beyond its end, shared
// and device memory read before it was written (both start as NaN), and results that depend on the order in which threads
// run (`Order`: tests run a kernel in several). What it cannot show: speed, and races between blocks that finish in order.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};

namespace emulator {

// What a running thread sees of itself.
struct Fiber;
struct Thread {
  uint3 index;
  unsigned lane, warp;
  Fiber* fiber;
};
extern Thread* current;
extern uint3 block_index;
extern dim3 block_size, grid_size;

// In which order the threads of a block are resumed.
enum class Order { forward, backward, shuffled };
extern Order order;

// Functions that stand for cuBLASLt's (cuda/cublaslt.h) in contexts opened from now on; null: there is none.
extern const void* cublaslt;

// Runs body() once for each thread of each block. Throws std::runtime_error naming the kernel where threads deadlock or
// write beyond their shared memory.
void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

void* shared_bytes();
void barrier();
// Puts `bytes` of `in` (at most 64) into the exchange of the lanes in `mask`, waits for all of them, and gives what each lane
// put: lane i's at result + 64 i, good until this lane's next exchange.
const unsigned char* exchange(unsigned mask, const void* in, size_t bytes);

// Copies queued by cp.async happen at the wait that they are waited for with, not before.
void queue_copy(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_copies(int pending_groups);

template <class T>
T from_lane(unsigned mask, T value, unsigned lane) {
  static_assert(sizeof(T) <= 64);
  const unsigned char* all = exchange(mask, &value, sizeof value);
  T out = value;
  if (lane < 32 && (mask >> lane & 1)) std::memcpy(&out, all + 64 * lane, sizeof out);
  return out;
}

// D = A B + C of one warp, mma.sync.m16n8k16 with bfloat16 A (row), B (column), float32 C: fragments as PTX lays them out.
void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
// ldmatrix.x4: eight rows of 16 bytes for each of four matrices, lane l giving the address of row l % 8 of matrix l / 8.
void load_matrices(uint32_t (&r)[4], const void* row, bool transposed);

}  // namespace emulator
