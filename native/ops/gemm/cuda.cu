// Dense products by our own kernels, for where there is no cuBLASLt: bfloat16 on tensor cores, three tiles of k under way; float32
// by multiply-adds. Where C has few tiles, k is shared out and the shares are added up in order.
#include <algorithm>

#include "cuda/context.h"
#include "ops/gemm/tile.cuh"

namespace pluralign::cuda {
namespace {

struct Operands {
  int64_t m, n, k, split, splits;  // split: of k that a block adds up
  const void *a, *b;
  int64_t lda, ldb;
  // Where the result goes: C, or with several splits float32 parts [splits × m × n].
  void* c;
  float* parts;
  int64_t ldc;
  float alpha;
  const float* bias;
  int accumulate, half_out;
};

__device__ inline void finish(const Operands& p, int64_t i, int64_t j, float sum) {
  sum *= p.alpha;
  if (p.bias) sum += p.bias[j];
  if (p.half_out) {
    bf16* to = static_cast<bf16*>(p.c) + i * p.ldc + j;
    store(to, p.accumulate ? sum + load(*to) : sum);
  } else {
    float* to = static_cast<float*>(p.c) + i * p.ldc + j;
    *to = p.accumulate ? sum + *to : sum;
  }
}

// Copies a tile while products go on; what is no whole aligned chunk is read at once.
template <class Tile, int threads>
__device__ inline void copy_tile(bf16* to, const Source<bf16, bf16>& from) {
  constexpr int kLine = Tile::kLength / 8;
  if (from.aligned && from.lines >= Tile::kLines && from.length >= Tile::kLength) {
    static_assert(Tile::kChunks % threads == 0);
#pragma unroll
    for (int i = 0; i < Tile::kChunks / threads; ++i) {
      const int c = int(threadIdx.x) + i * threads, line = c / kLine, at = c % kLine * 8;
      copy_async(to + line * Tile::kStride + at, from.at + line * from.ld + at);
    }
    return;
  }
#pragma unroll 1
  for (int c = int(threadIdx.x); c < Tile::kChunks; c += threads) {
    const int line = c / kLine, at = c % kLine * 8;
    bf16* place = to + line * Tile::kStride + at;
    if (from.aligned && line < from.lines && from.length - at >= 8) copy_async(place, from.at + line * from.ld + at);
    else *reinterpret_cast<uint4*>(place) = from(line, at);
  }
}

template <bool turn_a, bool turn_b>
struct HalfProduct : TileProduct<bf16, 128, 128, 32, turn_a, turn_b, 2, 4> {
  using Base = TileProduct<bf16, 128, 128, 32, turn_a, turn_b, 2, 4>;
  using A = typename Base::A;
  using B = typename Base::B;
  static constexpr int kM = 128, kN = 128, kK = 32, kStages = 3;
  static constexpr __host__ __device__ size_t bytes() { return SharedMemory::bytes<bf16>(kStages * A::kSize) + SharedMemory::bytes<bf16>(kStages * B::kSize); }
  template <class SourceA, class SourceB>
  __device__ void over(int64_t begin, int64_t end, SourceA&& source_a, SourceB&& source_b) {
    SharedMemory shared;
    bf16 *a = shared.take<bf16>(kStages * A::kSize), *b = shared.take<bf16>(kStages * B::kSize);
    const auto load = [&](int64_t k, int stage) {
      if (k < end) {
        copy_tile<A, Base::kThreads>(a + stage * A::kSize, source_a(k));
        copy_tile<B, Base::kThreads>(b + stage * B::kSize, source_b(k));
      }
      commit_copies();
    };
    load(begin, 0);
    load(begin + kK, 1);
    int stage = 0;
    for (int64_t k = begin; k < end; k += kK) {
      wait_copies<1>();
      __syncthreads();
      load(k + 2 * kK, stage == 0 ? 2 : stage - 1);
      this->step(a + stage * A::kSize, b + stage * B::kSize);
      stage = stage == 2 ? 0 : stage + 1;
    }
  }
};

template <bool turn_a, bool turn_b>
struct FloatProduct : TileProduct<float, 64, 64, 16, turn_a, turn_b, 2, 2> {
  using Base = TileProduct<float, 64, 64, 16, turn_a, turn_b, 2, 2>;
  static constexpr int kM = 64, kN = 64, kK = 16;
  template <class SourceA, class SourceB>
  __device__ void over(int64_t begin, int64_t end, SourceA&& source_a, SourceB&& source_b) {
    SharedMemory shared;
    int64_t k = begin - kK;
    this->template run<Source<float, float>, Source<float, float>>(shared, [&](auto& a, auto& b) {
      if ((k += kK) >= end) return false;
      a = source_a(k);
      b = source_b(k);
      return true;
    });
  }
};

template <class T, bool turn_a, bool turn_b>
using ProductOf = std::conditional_t<sizeof(T) == 2, HalfProduct<turn_a, turn_b>, FloatProduct<turn_a, turn_b>>;

template <class T, bool turn_a, bool turn_b>
__global__ void __launch_bounds__((ProductOf<T, turn_a, turn_b>::kThreads), 2) product_kernel(Operands p) {
  using Product = ProductOf<T, turn_a, turn_b>;
  // Blocks that run together take eight rows of tiles, column after column, so that what they read stays in the cache.
  constexpr int64_t kGroup = 8;
  const int64_t rows = (p.m + Product::kM - 1) / Product::kM, columns = (p.n + Product::kN - 1) / Product::kN, group = blockIdx.x / (kGroup * columns), first = group * kGroup,
                height = rows - first < kGroup ? rows - first : kGroup, inside = blockIdx.x - group * kGroup * columns;
  const int64_t m0 = (first + inside % height) * Product::kM, n0 = inside / height * Product::kN;
  const int64_t begin = blockIdx.y * p.split, end = begin + p.split < p.k ? begin + p.split : p.k;
  Product product;
  product.clear();
  const T *a = static_cast<const T*>(p.a), *b = static_cast<const T*>(p.b);
  product.over(
      begin, end,
      [&](int64_t k) {
        if constexpr (turn_a) return source<T>(a + k * p.lda + m0, p.lda, end - k, p.m - m0);
        else return source<T>(a + m0 * p.lda + k, p.lda, p.m - m0, end - k);
      },
      [&](int64_t k) {
        if constexpr (turn_b) return source<T>(b + k * p.ldb + n0, p.ldb, end - k, p.n - n0);
        else return source<T>(b + n0 * p.ldb + k, p.ldb, p.n - n0, end - k);
      });
  float* part = p.splits > 1 ? p.parts + blockIdx.y * p.m * p.n : nullptr;
  product.each([&](int i, int j, float u, float v) {
    const int64_t row = m0 + i, column = n0 + j;
    if (row >= p.m) return;
    if (part) {
      if (column < p.n) part[row * p.n + column] = u;
      if (column + 1 < p.n) part[row * p.n + column + 1] = v;
    } else {
      if (column < p.n) finish(p, row, column, u);
      if (column + 1 < p.n) finish(p, row, column + 1, v);
    }
  });
}

__global__ void __launch_bounds__(256) parts_kernel(Operands p) {
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= p.m * p.n) return;
  float sum = 0;
  for (int64_t s = 0; s < p.splits; ++s) sum += p.parts[s * p.m * p.n + i];
  finish(p, i / p.n, i % p.n, sum);
}

template <class T, bool turn_a, bool turn_b>
void start(Context& context, Operands p) {
  using Product = ProductOf<T, turn_a, turn_b>;
  const int64_t tiles = ceil_div(p.m, Product::kM) * ceil_div(p.n, Product::kN);
  // Enough blocks for a large device, each with a fair stretch of k; fixed by shapes, so that sums repeat.
  p.splits = std::max<int64_t>(1, std::min(264 / tiles, p.k / 512));
  p.split = ceil_div(ceil_div(p.k, p.splits), 64) * 64;
  p.splits = std::max<int64_t>(1, p.split > 0 ? ceil_div(p.k, p.split) : 1);
  if (p.splits > 1) p.parts = context.scratch<float>(kSlotProductWork, p.splits * p.m * p.n);
  allow_shared(context, product_kernel<T, turn_a, turn_b>, Product::bytes());
  PLURALIGN_LAUNCH((product_kernel<T, turn_a, turn_b>), dim3(unsigned(tiles), unsigned(p.splits)), Product::kThreads, Product::bytes(), context.stream, p);
  if (p.splits > 1) PLURALIGN_LAUNCH(parts_kernel, blocks(ceil_div(p.m * p.n, 256)), 256, 0, context.stream, p);
}

template <class T>
void start(Context& context, const Operands& o, bool turn_a, bool turn_b) {
  if (turn_a) turn_b ? start<T, true, true>(context, o) : start<T, true, false>(context, o);
  else turn_b ? start<T, false, true>(context, o) : start<T, false, false>(context, o);
}

}  // namespace

void own_product(Context& context, const Product& p) {
  if (p.m <= 0 || p.n <= 0) return;
  if (p.a_type != p.b_type || (p.a_type != DType::f32 && p.a_type != DType::bf16) || (p.c_type != DType::f32 && p.c_type != DType::bf16))
    throw Failure(device::Status::bad_argument, "a product of these types");
  const Operands o{p.m, p.n, std::max<int64_t>(p.k, 0), 0, 1, p.a, p.b, p.lda, p.ldb, p.c, nullptr, p.ldc, p.alpha, p.bias, int(p.accumulate), int(p.c_type == DType::bf16)};
  // A tile of B is lines of k where B is stored [k × n].
  if (p.a_type == DType::bf16) start<bf16>(context, o, p.a_transposed, !p.b_transposed);
  else start<float>(context, o, p.a_transposed, !p.b_transposed);
  context.check("product");
}

}  // namespace pluralign::cuda
