// Products of tiles in shared memory: what every kernel with a product in it is made of. bfloat16 tiles go through tensor
// cores, float32 tiles through multiply-adds; both leave the sums where mma_bf16 does, so that what follows is written once.
#pragma once
#include "cuda/device.cuh"

namespace pluralign::cuda {

// Elements of T in 16 bytes: what is loaded and stored at a time.
template <class T>
constexpr int kChunk = 16 / int(sizeof(T));

__device__ inline uint4 pack_chunk(const float (&v)[4]) { return make_uint4(__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])); }
__device__ inline uint4 pack_chunk(const float (&v)[8]) { return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])); }
__device__ inline void unpack_chunk(uint4 c, float (&v)[4]) {
  v[0] = __uint_as_float(c.x), v[1] = __uint_as_float(c.y), v[2] = __uint_as_float(c.z), v[3] = __uint_as_float(c.w);
}
__device__ inline void unpack_chunk(uint4 c, float (&v)[8]) {
  const uint32_t words[4] = {c.x, c.y, c.z, c.w};
  for (int i = 0; i < 4; ++i) v[2 * i] = __uint_as_float(words[i] << 16), v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
}

// n floats from S at `from`, zeros from `valid` on. `aligned`: n elements of S stand at a multiple of their size, up to 16 bytes.
template <int n, class S>
__device__ inline void load_floats(float (&v)[n], const S* from, int valid, bool aligned) {
  if (aligned && valid >= n) {
    if constexpr (sizeof(S) == 4) {
      for (int i = 0; i < n; i += 4) {
        float part[4];
        unpack_chunk(*reinterpret_cast<const uint4*>(from + i), part);
        for (int j = 0; j < 4; ++j) v[i + j] = part[j];
      }
    } else if constexpr (n == 8) {
      unpack_chunk(*reinterpret_cast<const uint4*>(from), v);
    } else {
      const uint2 two = *reinterpret_cast<const uint2*>(from);
      v[0] = __uint_as_float(two.x << 16), v[1] = __uint_as_float(two.x & 0xffff0000u);
      v[2] = __uint_as_float(two.y << 16), v[3] = __uint_as_float(two.y & 0xffff0000u);
    }
  } else {
    for (int i = 0; i < n; ++i) v[i] = i < valid ? load(from[i]) : 0.f;
  }
}

// A part of a row-major matrix as the source of a tile: element (line, at) is at[line * ld + at], zero outside lines × length.
template <class T, class S>
struct Source {
  const S* at;
  int64_t ld;
  int lines, length;
  bool aligned;
  __device__ uint4 operator()(int line, int first) const {
    const int valid = line < lines ? length - first : 0;
    const S* from = at + int64_t(line) * ld + first;
    if constexpr (sizeof(T) == sizeof(S)) {
      if (aligned && valid >= kChunk<T>) return *reinterpret_cast<const uint4*>(from);
    }
    float v[kChunk<T>];
    load_floats(v, from, valid, aligned);
    return pack_chunk(v);
  }
};
// Whether rows of `ld` elements of S from `at` on, taken kChunk<T> at a time from multiples of it, are aligned.
template <class T, class S>
__device__ inline bool chunks_aligned(const S* at, int64_t ld) {
  const uint64_t bytes = kChunk<T> * sizeof(S) < 16 ? kChunk<T> * sizeof(S) : 16;
  return reinterpret_cast<uintptr_t>(at) % bytes == 0 && uint64_t(ld) * sizeof(S) % bytes == 0;
}
template <class T, class S>
__device__ inline Source<T, S> source(const S* at, int64_t ld, int64_t lines, int64_t length) {
  constexpr int64_t kMost = 1 << 30;  // more than any tile has
  return {at, ld, int(lines < kMost ? lines : kMost), int(length < kMost ? length : kMost), chunks_aligned<T>(at, ld)};
}

// An operand's tile in shared memory: `rows` of C's rows (or columns) by `depth` of k, as it stands in memory: lines of k, or
// turned, lines of rows. Lines are 16 bytes longer than they need be, which keeps the eight that are read together apart.
template <class T, int rows, int depth, bool turned>
struct Tile {
  static constexpr int kLines = turned ? depth : rows, kLength = turned ? rows : depth, kStride = kLength + kChunk<T>, kSize = kLines * kStride;
  static constexpr int kChunks = kLines * (kLength / kChunk<T>);
  static_assert(kLength % kChunk<T> == 0);
};

// A tile on its way from memory: fetched into registers while products go on, put into shared memory afterwards.
template <class T, class Tile, int threads>
struct Staged {
  static constexpr int kLine = Tile::kLength / kChunk<T>, kHeld = (Tile::kChunks + threads - 1) / threads;
  uint4 held[kHeld];
  template <class From>
  __device__ void fetch(const From& from) {
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (const int c = int(threadIdx.x) + i * threads; c < Tile::kChunks) held[i] = from(c / kLine, c % kLine * kChunk<T>);
  }
  __device__ void put(T* tile) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (const int c = int(threadIdx.x) + i * threads; c < Tile::kChunks) *reinterpret_cast<uint4*>(tile + c / kLine * Tile::kStride + c % kLine * kChunk<T>) = held[i];
  }
};

// Fragments of tensor-core products from tiles (device.cuh says which lane holds what). `row`, `k`: of the fragment's corner.
template <class Tile, bool turned>
__device__ inline void load_a(uint32_t (&a)[4], const bf16* tile, int row, int k) {
  const int l = int(threadIdx.x) % kWarp;
  if constexpr (turned) load_matrices_transposed(a, tile + (k + l % 8 + l / 16 * 8) * Tile::kStride + row + l / 8 % 2 * 8);
  else load_matrices(a, tile + (row + l % 16) * Tile::kStride + k + l / 16 * 8);
}
// Two fragments of B, columns [column, column + 16): b[0], b[1] and b[2], b[3].
template <class Tile, bool turned>
__device__ inline void load_b(uint32_t (&b)[4], const bf16* tile, int column, int k) {
  const int l = int(threadIdx.x) % kWarp;
  if constexpr (turned) load_matrices_transposed(b, tile + (k + l % 16) * Tile::kStride + column + l / 16 * 8);
  else load_matrices(b, tile + (column + l % 8 + l / 16 * 8) * Tile::kStride + k + l / 8 % 2 * 8);
}

// C [kM × kN] += A B of a block of kWarpsM × kWarpsN warps, k in tiles of kK.
template <class T, int kM, int kN, int kK, bool kTurnA, bool kTurnB, int kWarpsM, int kWarpsN>
struct TileProduct {
  using A = Tile<T, kM, kK, kTurnA>;
  using B = Tile<T, kN, kK, kTurnB>;
  static constexpr int kThreads = kWarp * kWarpsM * kWarpsN;
  static constexpr int kTilesM = kM / kWarpsM / 16, kTilesN = kN / kWarpsN / 8;
  static_assert(kTilesM * 16 * kWarpsM == kM && kTilesN * 8 * kWarpsN == kN && kTilesN % 2 == 0 && kK % 16 == 0);
  // Shared memory for run().
  static constexpr __host__ __device__ size_t bytes() { return SharedMemory::bytes<T>(2 * A::kSize) + SharedMemory::bytes<T>(2 * B::kSize); }

  float sums[kTilesM][kTilesN][4];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < kTilesM; ++i)
#pragma unroll
      for (int j = 0; j < kTilesN; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
  }
  static __device__ int warp_row() { return int(threadIdx.x) / kWarp / kWarpsN * (kM / kWarpsM); }
  static __device__ int warp_column() { return int(threadIdx.x) / kWarp % kWarpsN * (kN / kWarpsN); }

  __device__ void step(const T* a, const T* b) {
    const int m0 = warp_row(), n0 = warp_column();
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int k = 0; k < kK; k += 16) {
        uint32_t fa[kTilesM][4];
#pragma unroll
        for (int i = 0; i < kTilesM; ++i) load_a<A, kTurnA>(fa[i], a, m0 + 16 * i, k);
#pragma unroll
        for (int j = 0; j < kTilesN; j += 2) {
          uint32_t fb[4];
          load_b<B, kTurnB>(fb, b, n0 + 8 * j, k);
#pragma unroll
          for (int i = 0; i < kTilesM; ++i) {
            mma_bf16(sums[i][j], fa[i], {fb[0], fb[1]});
            mma_bf16(sums[i][j + 1], fa[i], {fb[2], fb[3]});
          }
        }
      }
    } else {
      const int row = m0 + int(threadIdx.x) % kWarp / 4, column = n0 + int(threadIdx.x) % 4 * 2;
#pragma unroll 2
      for (int k = 0; k < kK; ++k) {
        float left[kTilesM][2];
#pragma unroll
        for (int i = 0; i < kTilesM; ++i)
#pragma unroll
          for (int e = 0; e < 2; ++e) left[i][e] = kTurnA ? a[k * A::kStride + row + 16 * i + 8 * e] : a[(row + 16 * i + 8 * e) * A::kStride + k];
#pragma unroll
        for (int j = 0; j < kTilesN; ++j)
#pragma unroll
          for (int f = 0; f < 2; ++f) {
            const float right = kTurnB ? b[k * B::kStride + column + 8 * j + f] : b[(column + 8 * j + f) * B::kStride + k];
#pragma unroll
            for (int i = 0; i < kTilesM; ++i)
#pragma unroll
              for (int e = 0; e < 2; ++e) sums[i][j][2 * e + f] += left[i][e] * right;
          }
      }
    }
  }

  // Adds up every pair of tiles that next(source of A, source of B) gives until it gives none; all threads must agree on it.
  // Two pairs of tiles in shared memory, one barrier a step. The caller waits at a barrier before it writes there again.
  template <class FromA, class FromB, class Next>
  __device__ void run(SharedMemory& shared, Next&& next) {
    T *a = shared.take<T>(2 * A::kSize), *b = shared.take<T>(2 * B::kSize);
    Staged<T, A, kThreads> left;
    Staged<T, B, kThreads> right;
    FromA from_a{};
    FromB from_b{};
    bool more = next(from_a, from_b);
    if (more) left.fetch(from_a), right.fetch(from_b);
    for (int buffer = 0; more; buffer ^= 1) {
      left.put(a + buffer * A::kSize);
      right.put(b + buffer * B::kSize);
      more = next(from_a, from_b);
      __syncthreads();
      if (more) left.fetch(from_a), right.fetch(from_b);
      step(a + buffer * A::kSize, b + buffer * B::kSize);
    }
  }

  // to(row, column, value, value of the next column) for every pair of elements that this thread holds.
  template <class To>
  __device__ void each(To&& to) const {
    const int row = warp_row() + int(threadIdx.x) % kWarp / 4, column = warp_column() + int(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < kTilesM; ++i)
#pragma unroll
      for (int j = 0; j < kTilesN; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) to(row + 16 * i + 8 * e, column + 8 * j, sums[i][j][2 * e], sums[i][j][2 * e + 1]);
  }
};

}  // namespace pluralign::cuda
