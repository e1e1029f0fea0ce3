// What a kernel may use. Under nvcc these are CUDA's own; under PLURALIGN_EMULATE_CUDA the same source is C++ over
// native/test/cuda/emulator.h, which runs each thread of a block as a fiber. A kernel
//   - is started by PLURALIGN_LAUNCH(kernel, grid, block, shared bytes, stream, arguments…), the kernel in brackets where its
//     name has a comma;
//   - declares no __shared__ variables: its shared memory is what the launch names, carved by SharedMemory;
//   - takes every array by pointer and every size by value, and leaves where its indices are out of range only where no
//     barrier or exchange of its warp follows;
//   - adds up in an order that depends on shapes alone: no atomic operations on floating-point numbers.
// Available: threadIdx, blockIdx, blockDim, gridDim, __syncthreads, __syncwarp, __shfl_sync, __shfl_xor_sync,
// __shfl_down_sync, __ballot_sync, __any_sync, __all_sync, atomicAdd and atomicMax on int and unsigned, float2, float4, uint2,
// uint4, the <cmath> functions, and below: bfloat16, tensor-core products, asynchronous copies, sums over a warp or block.
#pragma once

#ifdef PLURALIGN_EMULATE_CUDA
#include "cuda/emulated.cuh"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#define PLURALIGN_LAUNCH(kernel, grid, block, shared, stream, ...) PLURALIGN_UNBRACKET kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#endif

#include <cmath>
#include <cstdint>

#include "base/dtype.h"

#define PLURALIGN_UNBRACKET

namespace pluralign::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

#ifndef PLURALIGN_EMULATE_CUDA
__device__ inline unsigned char* shared_start() {
  extern __shared__ __align__(128) unsigned char pluralign_shared[];
  return pluralign_shared;
}
#endif

// Carves a block's shared memory: auto* tile = shared.take<float>(64 * 32). Each part is aligned to 16 bytes; `bytes` of the
// same parts is what the launch must name.
class SharedMemory {
 public:
  __device__ SharedMemory() : at_(shared_start()) {}
  template <class T>
  __device__ T* take(int64_t count) {
    T* part = reinterpret_cast<T*>(at_);
    at_ += bytes<T>(count);
    return part;
  }
  template <class T>
  static constexpr __host__ __device__ size_t bytes(int64_t count) { return (size_t(count) * sizeof(T) + 15) / 16 * 16; }

 private:
  unsigned char* at_;
};

// ---- numbers. load and store are those of activations in either storage.

__device__ inline float load(float x) { return x; }
__device__ inline float load(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
#ifdef PLURALIGN_EMULATE_CUDA
__device__ inline bf16 round_bf16(float x) { return to_bf16(x); }
#else
__device__ inline bf16 round_bf16(float x) { return {__bfloat16_as_ushort(__float2bfloat16_rn(x))}; }
#endif
__device__ inline void store(float* to, float x) { *to = x; }
__device__ inline void store(bf16* to, float x) { *to = round_bf16(x); }
// Two values as one register of a tensor-core fragment, the first in the lower half.
__device__ inline uint32_t pack_bf16(float lower, float upper) { return uint32_t(round_bf16(lower).bits) | uint32_t(round_bf16(upper).bits) << 16; }

// ---- tensor cores: c += a b of one warp, bfloat16 products in float32 (mma.sync.m16n8k16, row · column). Lane l: c holds
// rows l / 4 (0, 1) and l / 4 + 8 (2, 3), columns 2 (l % 4) and the next; a: (row, 2 (l % 4)) and the next k, (row + 8, …),
// (row, … + 8), (row + 8, … + 8); b: (k 2 (l % 4) and the next, column l / 4), (k + 8, …).
#ifndef PLURALIGN_EMULATE_CUDA
__device__ inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four 8 × 8 matrices of bfloat16 from shared memory; lane l gives the address (16-byte aligned) of row l % 8 of matrix l / 8.
// Register i of lane l: elements (l / 4, 2 (l % 4)) and the next of matrix i, or of its transpose.
__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(uint32_t(__cvta_generic_to_shared(row))) : "memory");
}
__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(uint32_t(__cvta_generic_to_shared(row))) : "memory");
}

// ---- asynchronous copies into shared memory: 16 bytes, both sides aligned; zeros where `wanted` is false (`from` must still
// be readable memory). A group is what one thread queued before commit; wait_copies<n> waits until at most n of the thread's
// groups are under way. A barrier must follow before other threads read.
__device__ inline void copy_async(void* to, const void* from, bool wanted = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int n>
__device__ inline void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory"); }
#endif

// ---- sums and maxima over a warp: every lane gets the result, in one order.
__device__ inline float warp_sum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
__device__ inline double warp_sum(double x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}
__device__ inline float warp_max(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}
// Over a block of whole warps in x; `room`: shared memory for 33 values, free again after the next barrier.
template <class T>
__device__ inline T block_sum(T x, T* room) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp, warps = int(blockDim.x) / kWarp;
  x = warp_sum(x);
  if (lane == 0) room[warp] = x;
  __syncthreads();
  T total = 0;
  for (int i = 0; i < warps; ++i) total += room[i];
  return total;
}

}  // namespace pluralign::cuda
