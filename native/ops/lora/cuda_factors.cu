// Gradients of adapters' factors on the GPU. Factors may be shared by adapters: the block of the first run that has one adds up
// the rows of all that do, in their order.
#include <algorithm>

#include "ops/lora/cuda.cuh"

namespace pluralign::cuda {
namespace {

enum Factor { kA, kB, kCore, kVector };  // the last two: cores that are matrices, and vectors
template <Factor factor>
struct Gradient {
  __device__ float* operator()(const LoraModule& m) const { return factor == kA ? m.da : factor == kB ? m.db : (m.core_rows == 1) == (factor == kVector) ? m.dcore : nullptr; }
};

template <int kR>
constexpr int kColumns = kR == 16 ? 128 : 64;
template <class T, int kR>
using FactorTiles = TileProduct<T, kR, kColumns<kR>, 32, true, true, kR == 16 ? 1 : 2, kR == 16 ? 4 : 2>;

// Which block adds up what: `width` columns of all factors in tiles, ranks in tiles, runs, windows of rows.
struct Share {
  int64_t rank_tiles, column_tiles, width, window;
  float* windows;  // [windows × factors × runs × stride × width], or null: straight to the gradient
};

// da += lowᵀ x, db += scale · dyᵀ middle (the other way round), dcore += dcᵀ h.
template <class T, Factor factor, int kR>
__device__ inline void add_factor(const Lora& c, const LoraPart& p, const Share& s) {
  constexpr int kN = kColumns<kR>, kK = 32;
  int64_t block = blockIdx.x;
  const int64_t n0 = block % s.column_tiles * kN;
  block /= s.column_tiles;
  const int64_t j0 = block % s.rank_tiles * kR, self = block / s.rank_tiles, begin = int64_t(blockIdx.y) * s.window;
  const int adapter_of_self = c.runs[self].adapter;
  if (adapter_of_self < 0) return;
  const LoraModule& mine = p.modules[adapter_of_self];
  const int64_t r = mine.r, width = factor == kA ? c.in : factor == kB ? p.out : r;
  if (j0 >= r || n0 >= width) return;
  SharedMemory shared;
  uint32_t* room = shared.take<uint32_t>(kLoraThreads / kWarp);
  SharingRows<Gradient<factor>> rows(c.runs, c.run_count, p.modules, {}, self, begin, begin + s.window, room);
  if (!rows.leads()) return;
  FactorTiles<T, kR> product;
  product.clear();
  const auto sources = [&](auto& a, auto& b) {
    int64_t row, count;
    int adapter;
    if (!rows.next(kK, row, count, adapter)) return false;
    const LoraModule& m = p.modules[adapter];
    [[maybe_unused]] const bool core = m.core_rows > 0;
    if constexpr (factor == kA) {
      a = source<T>((core ? p.low : p.dc) + row * c.stride + j0, c.stride, count, r - j0);
      b = {source<T>(static_cast<const T*>(c.x) + row * c.in + n0, c.in, count, c.in - n0), drop_of(m, p.stream, c.row_keys, row), n0};
    } else if constexpr (factor == kB) {
      const int64_t ld = core ? c.stride : c.h_stride;
      a = {source<T>((core ? p.middle : p.h) + row * ld + j0, ld, count, r - j0), m.scale};
      b = source<T>(p.dy + row * p.ldy + n0, p.ldy, count, p.out - n0);
    } else {
      a = source<T>(p.dc + row * c.stride + j0, c.stride, count, r - j0);
      b = source<T>(p.h + row * c.h_stride + n0, c.h_stride, count, r - n0);
    }
    return true;
  };
  if constexpr (factor == kA) product.template run<Source<T, float>, DroppedSource<T, T>>(shared, sources);
  else if constexpr (factor == kB) product.template run<ScaledSource<T, float>, Source<T, float>>(shared, sources);
  else product.template run<Source<T, float>, Source<T, float>>(shared, sources);
  // Element (j, n) of da and dcore stands at j · width + n, of db at n · r + j.
  float* sums = s.windows ? s.windows + ((int64_t(blockIdx.y) * gridDim.z + blockIdx.z) * c.run_count + self) * c.stride * s.width : Gradient<factor>()(mine);
  const auto put = [&](int64_t j, int64_t n, float v) {
    if (j >= r || n >= width) return;
    float* to = sums + (factor == kB ? n * r + j : j * width + n);
    *to = s.windows ? v : *to + v;
  };
  product.each([&](int i, int j, float u, float v) {
    put(j0 + i, n0 + j, u);
    put(j0 + i, n0 + j + 1, v);
  });
}

// A of every part, then B of every part.
template <class T, int kR>
__global__ void __launch_bounds__(kLoraThreads, 3) lora_factors_kernel(const __grid_constant__ Lora c, Share s) {
  const LoraPart& p = c.part[blockIdx.z % c.count];
  if (!p.modules) return;
  if (int(blockIdx.z) < c.count) add_factor<T, kA, kR>(c, p, s);
  else add_factor<T, kB, kR>(c, p, s);
}
__global__ void __launch_bounds__(kLoraThreads, 3) lora_core_kernel(const __grid_constant__ Lora c, Share s) {
  const LoraPart& p = c.part[blockIdx.z];
  if (p.modules) add_factor<float, kCore, 16>(c, p, s);
}

// Adds the windows of one run's factor to its gradient.
template <Factor factor>
__device__ inline void add_windows(const Lora& c, const LoraPart& p, const Share& s, int64_t count) {
  const int64_t self = blockIdx.y;
  SharedMemory shared;
  SharingRows<Gradient<factor>> rows(c.runs, c.run_count, p.modules, {}, self, 0, 0, shared.take<uint32_t>(kLoraThreads / kWarp));
  if (!rows.leads()) return;
  const LoraModule& m = p.modules[c.runs[self].adapter];
  const int64_t i = int64_t(blockIdx.x) * kLoraThreads + threadIdx.x;
  if (i >= m.r * (factor == kA ? c.in : p.out)) return;
  float sum = 0;
  for (int64_t w = 0; w < count; ++w) sum += s.windows[((w * gridDim.z + blockIdx.z) * c.run_count + self) * c.stride * s.width + i];
  Gradient<factor>()(m)[i] += sum;
}
__global__ void __launch_bounds__(kLoraThreads) lora_windows_kernel(const __grid_constant__ Lora c, Share s, int64_t count) {
  const LoraPart& p = c.part[blockIdx.z % c.count];
  if (!p.modules) return;
  if (int(blockIdx.z) < c.count) add_windows<kA>(c, p, s, count);
  else add_windows<kB>(c, p, s, count);
}

// dcore += Σ dc · h where the core is a vector. A block takes a run's core, its threads coordinates.
__global__ void __launch_bounds__(kLoraThreads) lora_vector_kernel(const __grid_constant__ Lora c) {
  const LoraPart& p = c.part[blockIdx.z];
  if (!p.modules) return;
  SharedMemory shared;
  const int64_t self = blockIdx.x;
  SharingRows<Gradient<kVector>> rows(c.runs, c.run_count, p.modules, {}, self, 0, c.rows, shared.take<uint32_t>(kLoraThreads / kWarp));
  if (!rows.leads()) return;
  const LoraModule& m = p.modules[c.runs[self].adapter];
  int64_t row, count;
  int adapter;
  while (rows.next(c.rows, row, count, adapter))
    for (int64_t j = threadIdx.x; j < m.r; j += kLoraThreads) {
      float sum = 0;
      for (int64_t i = row; i < row + count; ++i) sum += p.dc[i * c.stride + j] * p.h[i * c.h_stride + j];
      m.dcore[j] += sum;
    }
}

template <class T, int kR>
void start(Context& context, const Lora& c, const LoraRanks& ranks) {
  Share s{};
  s.width = c.in;
  for (int i = 0; i < c.count; ++i) s.width = std::max(s.width, c.part[i].out);
  s.rank_tiles = ceil_div(ranks.most, kR);
  s.column_tiles = ceil_div(s.width, kColumns<kR>);
  const int64_t blocks_of_window = s.rank_tiles * s.column_tiles * c.run_count;
  // Few factors over many rows: windows of rows, as many as keep a large device busy; fixed by shapes, so that sums repeat.
  int64_t windows = std::min(ceil_div(264, blocks_of_window * c.count), ceil_div(c.rows, 256));
  s.window = ceil_div(ceil_div(c.rows, windows), 32) * 32;
  windows = ceil_div(c.rows, s.window);
  const unsigned factors = unsigned(2 * c.count);
  if (windows > 1) s.windows = context.scratch<float>(kSlotA, windows * factors * c.run_count * c.stride * s.width);
  const size_t bytes = FactorTiles<T, kR>::bytes() + SharedMemory::bytes<uint32_t>(kLoraThreads / kWarp);
  allow_shared(context, lora_factors_kernel<T, kR>, bytes);
  PLURALIGN_LAUNCH((lora_factors_kernel<T, kR>), dim3(unsigned(blocks_of_window), unsigned(windows), factors), kLoraThreads, bytes, context.stream, c, s);
  if (windows > 1)
    PLURALIGN_LAUNCH(lora_windows_kernel, dim3(unsigned(ceil_div(ranks.most * s.width, kLoraThreads)), unsigned(c.run_count), factors), kLoraThreads,
                     SharedMemory::bytes<uint32_t>(kLoraThreads / kWarp), context.stream, c, s, windows);
}

}  // namespace

void lora_factors(Context& context, const Lora& c, const LoraRanks& ranks, int storage) {
  if (ranks.factors) {
    if (storage == kF32) start<float, 16>(context, c, ranks);
    else if (ranks.most > 16) start<bf16, 64>(context, c, ranks);
    else start<bf16, 16>(context, c, ranks);
  }
  if (ranks.matrix) {
    const Share s{ceil_div(ranks.core, 16), ceil_div(ranks.core, kColumns<16>), ranks.core, c.rows, nullptr};
    const size_t bytes = FactorTiles<float, 16>::bytes() + SharedMemory::bytes<uint32_t>(kLoraThreads / kWarp);
    allow_shared(context, lora_core_kernel, bytes);
    PLURALIGN_LAUNCH(lora_core_kernel, dim3(unsigned(s.rank_tiles * s.column_tiles * c.run_count), 1, unsigned(c.count)), kLoraThreads, bytes, context.stream, c, s);
  }
  if (ranks.vector) PLURALIGN_LAUNCH(lora_vector_kernel, dim3(unsigned(c.run_count), 1, unsigned(c.count)), kLoraThreads, SharedMemory::bytes<uint32_t>(kLoraThreads / kWarp), context.stream, c);
}

}  // namespace pluralign::cuda
