// CUDA's words over the emulator of native/test/cuda: what device.cuh gives kernels, and what host code uses of the runtime.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <tuple>

#include "test/cuda/emulator.h"
#include "test/cuda/runtime.h"

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

#define threadIdx (::emulator::current->index)
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)

// Arguments are copied when the kernel is launched, as the runtime does: it may run later, or more than once.
#define PLURALIGN_LAUNCH(kernel, grid, block, shared, stream, ...)                                                          \
  do {                                                                                                                     \
    if (::emulator::may_launch(grid, block, shared))                                                                       \
      ::emulator::queue(stream, true, [g = dim3(grid), b = dim3(block), s = size_t(shared), held = std::make_tuple(__VA_ARGS__)] { \
        ::emulator::launch(#kernel, g, b, s, [&held] { std::apply([](const auto&... each) { PLURALIGN_UNBRACKET kernel(each...); }, held); }); \
      });                                                                                                                  \
  } while (0)

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline void __syncthreads() { ::emulator::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  const char none = 0;
  ::emulator::exchange(mask, &none, 1);
}
template <class T>
T __shfl_sync(unsigned mask, T x, int lane, int width = 32) {
  const unsigned self = ::emulator::current->lane;
  return ::emulator::from_lane(mask, x, (self & ~unsigned(width - 1)) | (unsigned(lane) & unsigned(width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32) {
  return ::emulator::from_lane(mask, x, ::emulator::current->lane ^ unsigned(bits));
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32) {
  const unsigned self = ::emulator::current->lane;
  return ::emulator::from_lane(mask, x, self % unsigned(width) + by < unsigned(width) ? self + by : self);
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32) {
  const unsigned self = ::emulator::current->lane;
  return ::emulator::from_lane(mask, x, self % unsigned(width) >= by ? self - by : self);
}
inline unsigned __ballot_sync(unsigned mask, int condition) {
  const unsigned char mine = condition != 0;
  const unsigned char* all = ::emulator::exchange(mask, &mine, 1);
  unsigned out = 0;
  for (unsigned l = 0; l < 32; ++l)
    if ((mask >> l & 1) && all[64 * l]) out |= 1u << l;
  return out;
}
inline int __any_sync(unsigned mask, int condition) { return __ballot_sync(mask, condition) != 0; }
inline int __all_sync(unsigned mask, int condition) { return __ballot_sync(mask, condition) == mask; }
template <class T>
T atomicAdd(T* at, T by) {
  static_assert(sizeof(T) > 0 && T(0.5) == T(0), "no atomic sums of floating-point numbers: their order is chance");
  const T old = *at;
  *at = T(old + by);
  return old;
}
template <class T>
T atomicMax(T* at, T by) {
  const T old = *at;
  *at = old < by ? by : old;
  return old;
}
template <class T>
T __ldg(const T* at) { return *at; }
inline float __uint_as_float(uint32_t u) {
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
inline uint32_t __float_as_uint(float f) {
  uint32_t u;
  std::memcpy(&u, &f, 4);
  return u;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
using std::max;
using std::min;

namespace pluralign::cuda {
inline unsigned char* shared_start() { return static_cast<unsigned char*>(::emulator::shared_bytes()); }
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { ::emulator::mma_m16n8k16(c, a, b); }
inline void load_matrices(uint32_t (&r)[4], const void* row) { ::emulator::load_matrices(r, row, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) { ::emulator::load_matrices(r, row, true); }
inline void copy_async(void* to, const void* from, bool wanted = true) { ::emulator::queue_copy(to, wanted ? from : nullptr, 16); }
inline void commit_copies() { ::emulator::commit_copies(); }
template <int n>
inline void wait_copies() { ::emulator::wait_copies(n); }
}  // namespace pluralign::cuda
