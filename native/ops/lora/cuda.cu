// Low-rank products of adapters on the GPU, grouped: a block takes up to 64 rows of one adapter, of whatever rank; linear layers
// that share their input go in the same launches. Sums over a width run in stretches of fixed length, so that a row's result
// does not depend on how many rows there are.
#include <algorithm>

#include "cuda/context.h"
#include "ops/lora/cuda.cuh"

namespace pluralign::cuda {
namespace {

using device::LinearCall;
using device::LinearPart;
using device::PlanRun;

constexpr int64_t kWhole = 1024, kStretch = 512;  // a width up to kWhole is one stretch, a longer one stretches of kStretch

// x Aᵀ, or scale · dy B, of one stretch of the width.
template <class T, bool back, int kN>
__global__ void __launch_bounds__(kLoraThreads, 4) lora_down_kernel(const __grid_constant__ Lora c) {
  using Tiles = TileProduct<T, kTileRows, kN, 64, false, back, 4, 1>;
  const RowTile t = c.tiles[blockIdx.x];
  const LoraPart& p = c.part[blockIdx.z % c.count];
  const int64_t n0 = int64_t(blockIdx.z) / c.count * kN, width = back ? p.out : c.in, begin = int64_t(blockIdx.y) * c.stretch;
  if (blockIdx.y >= p.stretches || !p.modules || t.rows == 0) return;
  const int64_t end = begin + c.stretch < width && p.stretches > 1 ? begin + c.stretch : width;
  const LoraModule& m = p.modules[t.adapter];
  const int64_t r = m.r;
  if (n0 >= r) return;
  SharedMemory shared;
  Tiles product;
  product.clear();
  int64_t k = begin - 64;
  if constexpr (back) {
    product.template run<Source<T, float>, Source<T, float>>(shared, [&](auto& a, auto& b) {
      if ((k += 64) >= end) return false;
      a = source<T>(p.dy + t.row * p.ldy + k, p.ldy, t.rows, end - k);
      b = source<T>(m.b + k * r + n0, r, end - k, r - n0);
      return true;
    });
  } else {
    const T* x = static_cast<const T*>(c.x) + t.row * c.in;
    const Drop drop = drop_of(m, p.stream, c.row_keys, t.row);
    product.template run<DroppedSource<T, T>, Source<T, float>>(shared, [&](auto& a, auto& b) {
      if ((k += 64) >= end) return false;
      a = {source<T>(x + k, c.in, t.rows, end - k), drop, k};
      b = source<T>(m.a + n0 * c.in + k, c.in, r - n0, end - k);
      return true;
    });
  }
  float* to = p.sums + (int64_t(blockIdx.y) * c.rows + t.row) * p.ld + n0;
  const float scale = back ? m.scale : 1.f;
  product.each([&](int i, int j, float u, float v) {
    if (i >= t.rows) return;
    if (n0 + j < r) to[i * p.ld + j] = scale * u;
    if (n0 + j + 1 < r) to[i * p.ld + j + 1] = scale * v;
  });
}

// Adds up the stretches, into h or dc, and goes through the core: middle from h, and low from dc. A block takes kFinishRows rows.
constexpr int kFinishRows = 8;
template <bool back>
__global__ void __launch_bounds__(kLoraThreads) lora_finish_kernel(const __grid_constant__ Lora c) {
  const RowTile t = c.tiles[blockIdx.x];
  const LoraPart& p = c.part[blockIdx.z];
  if (!p.modules) return;
  const LoraModule& m = p.modules[t.adapter];
  const int64_t first = int64_t(blockIdx.y) * kFinishRows, rows = t.rows - first < kFinishRows ? t.rows - first : kFinishRows, row = t.row + first, r = m.r;
  if (r <= 0 || rows <= 0 || (p.stretches == 1 && m.core_rows == 0)) return;
  float* to = back ? p.dc : p.h;
  const int64_t ld = back ? c.stride : c.h_stride;
  for (int64_t e = threadIdx.x; e < rows * r; e += kLoraThreads) {
    const int64_t i = e / r, j = e % r;
    float sum = 0;
    for (int64_t s = 0; s < p.stretches; ++s) sum += p.sums[(s * c.rows + row + i) * p.ld + j];
    to[(row + i) * ld + j] = sum;
  }
  if (m.core_rows == 0) return;
  __syncthreads();  // other threads read what was just written
  for (int64_t e = threadIdx.x; e < rows * r; e += kLoraThreads) {
    const int64_t i = e / r, j = e % r;
    const float *h = p.h + (row + i) * c.h_stride, *mine = to + (row + i) * ld;
    float up = 0, down = 0;
    if (m.core_rows == 1) {
      up = (back ? h : mine)[j] * m.core[j];
      down = mine[j] * m.core[j];
    } else {
      for (int64_t q = 0; q < r; ++q) {
        up += (back ? h : mine)[q] * m.core[j * r + q];
        if (back) down += mine[q] * m.core[q * r + j];
      }
    }
    p.middle[(row + i) * c.stride + j] = up;
    if (back) p.low[(row + i) * c.stride + j] = down;
  }
}

// Adds a tile of 64 × 64 sums to rows of y, through shared memory, so that rows are read and written in whole chunks.
constexpr int kUpStride = 64 + 4;
template <class Y>
__device__ inline void add_rows(Y* y, int64_t ldy, int rows, int64_t columns, const float* tile) {
  constexpr int kY = kChunk<Y>;
  const bool aligned = chunks_aligned<Y>(y, ldy);
#pragma unroll 2
  for (int e = int(threadIdx.x); e < kTileRows * (64 / kY); e += kLoraThreads) {
    const int i = e / (64 / kY), j = e % (64 / kY) * kY;
    if (i >= rows || j >= columns) continue;
    const int valid = columns - j < kY ? int(columns - j) : kY;
    Y* to = y + i * ldy + j;
    float sum[kY];
    load_floats(sum, to, valid, aligned);
#pragma unroll
    for (int f = 0; f < kY; ++f) sum[f] += tile[i * kUpStride + j + f];
    if (aligned && valid == kY) {
      *reinterpret_cast<uint4*>(to) = pack_chunk(sum);
    } else {
#pragma unroll
      for (int f = 0; f < kY; ++f)
        if (f < valid) store(to + f, sum[f]);
    }
  }
}

// y += scale · middle Bᵀ: 64 rows by 64 columns of one part.
template <class T, class Y>
__global__ void __launch_bounds__(kLoraThreads, 4) lora_up_kernel(const __grid_constant__ Lora c) {
  using Tiles = TileProduct<T, kTileRows, 64, 32, false, false, 2, 2>;
  const RowTile t = c.tiles[blockIdx.x];
  const LoraPart& p = c.part[blockIdx.z];
  const int64_t n0 = int64_t(blockIdx.y) * 64;
  if (!p.modules || n0 >= p.out || t.rows == 0) return;
  const LoraModule& m = p.modules[t.adapter];
  const int64_t r = m.r;
  if (r <= 0) return;
  const float* low = m.core_rows > 0 ? p.middle : p.h;
  const int64_t ld = m.core_rows > 0 ? c.stride : c.h_stride;
  SharedMemory shared;
  Tiles product;
  product.clear();
  int64_t k = -32;
  product.template run<Source<T, float>, Source<T, float>>(shared, [&](auto& a, auto& b) {
    if ((k += 32) >= r) return false;
    a = source<T>(low + t.row * ld + k, ld, t.rows, r - k);
    b = source<T>(m.b + n0 * r + k, r, p.out - n0, r - k);
    return true;
  });
  __syncthreads();
  float* tile = SharedMemory().take<float>(kTileRows * kUpStride);
  product.each([&](int i, int j, float u, float v) { tile[i * kUpStride + j] = m.scale * u, tile[i * kUpStride + j + 1] = m.scale * v; });
  __syncthreads();
  add_rows(static_cast<Y*>(p.y) + t.row * p.ldy + n0, p.ldy, t.rows, p.out - n0, tile);
}

// dx += Σ low A over the parts, each dropped as its x was: 64 rows by 64 columns.
template <class T>
__global__ void __launch_bounds__(kLoraThreads, 4) lora_input_kernel(const __grid_constant__ Lora c, float* dx) {
  using Tiles = TileProduct<T, kTileRows, 64, 32, false, true, 2, 2>;
  const RowTile t = c.tiles[blockIdx.x];
  const int64_t n0 = int64_t(blockIdx.y) * 64;
  float* tile = SharedMemory().take<float>(kTileRows * kUpStride);  // over the parts; each thread adds to its own elements
  bool any = false;
  for (int index = 0; index < c.count; ++index) {
    const LoraPart& p = c.part[index];
    if (!p.modules) continue;
    const LoraModule& m = p.modules[t.adapter];
    const int64_t r = m.r;
    if (r <= 0) continue;
    const float* low = m.core_rows > 0 ? p.low : p.dc;
    const Drop drop = drop_of(m, p.stream, c.row_keys, t.row);
    SharedMemory shared;
    shared.take<float>(kTileRows * kUpStride);
    Tiles product;
    product.clear();
    int64_t k = -32;
    if (any) __syncthreads();
    product.template run<Source<T, float>, Source<T, float>>(shared, [&](auto& a, auto& b) {
      if ((k += 32) >= r) return false;
      a = source<T>(low + t.row * c.stride + k, c.stride, t.rows, r - k);
      b = source<T>(m.a + k * c.in + n0, c.in, r - k, c.in - n0);
      return true;
    });
    product.each([&](int i, int j, float u, float v) {
      float* at = tile + i * kUpStride + j;
      if (drop.row_keys && i < t.rows) {
        const uint64_t key = drop.key(i);
        u *= drop.of(key, n0 + j), v *= drop.of(key, n0 + j + 1);
      }
      at[0] = any ? at[0] + u : u;
      at[1] = any ? at[1] + v : v;
    });
    any = true;
  }
  if (!any) return;
  __syncthreads();
  add_rows(dx + t.row * c.in + n0, c.in, t.rows, c.in - n0, tile);
}

// ---- host

struct Launches {
  Context& context;
  Lora c;
  LoraRanks ranks;
  int64_t tiles, widest;  // widest: of the parts' outputs

  template <class T, bool back, int kN>
  void down_of(int64_t stretches) {
    using Tiles = TileProduct<T, kTileRows, kN, 64, false, back, 4, 1>;
    allow_shared(context, lora_down_kernel<T, back, kN>, Tiles::bytes());
    PLURALIGN_LAUNCH((lora_down_kernel<T, back, kN>), dim3(unsigned(tiles), unsigned(stretches), unsigned(ceil_div(ranks.most, kN) * c.count)), kLoraThreads, Tiles::bytes(), context.stream, c);
  }
  template <class T, bool back>
  void down() {
    c.stretch = kStretch;
    int64_t total = 0, most = 0;
    for (int i = 0; i < c.count; ++i) {
      const int64_t width = back ? c.part[i].out : c.in;
      c.part[i].stretches = width <= kWhole ? 1 : ceil_div(width, kStretch);
      most = std::max(most, c.part[i].stretches);
      if (c.part[i].stretches > 1) total += c.part[i].stretches;
    }
    float* room = total ? context.scratch<float>(kSlotA, total * c.rows * c.stride) : nullptr;
    for (int i = 0; i < c.count; ++i) {
      LoraPart& p = c.part[i];
      p.sums = p.stretches > 1 ? room : back ? p.dc : p.h;
      p.ld = p.stretches > 1 || back ? c.stride : c.h_stride;
      if (p.stretches > 1) room += p.stretches * c.rows * c.stride;
    }
    if constexpr (sizeof(T) == 2) {
      if (ranks.most > 16) down_of<T, back, 64>(most);
      else down_of<T, back, 16>(most);
    } else {
      down_of<T, back, 16>(most);
    }
    if (most > 1 || ranks.core)
      PLURALIGN_LAUNCH((lora_finish_kernel<back>), dim3(unsigned(tiles), kTileRows / kFinishRows, unsigned(c.count)), kLoraThreads, 0, context.stream, c);
  }
  template <class T, class Y>
  void up() {
    using Tiles = TileProduct<T, kTileRows, 64, 32, false, false, 2, 2>;
    const size_t bytes = std::max(Tiles::bytes(), SharedMemory::bytes<float>(kTileRows * kUpStride));
    allow_shared(context, lora_up_kernel<T, Y>, bytes);
    PLURALIGN_LAUNCH((lora_up_kernel<T, Y>), dim3(unsigned(tiles), unsigned(ceil_div(widest, 64)), unsigned(c.count)), kLoraThreads, bytes, context.stream, c);
  }
  template <class T>
  void input(float* dx) {
    using Tiles = TileProduct<T, kTileRows, 64, 32, false, true, 2, 2>;
    const size_t bytes = Tiles::bytes() + SharedMemory::bytes<float>(kTileRows * kUpStride);
    allow_shared(context, lora_input_kernel<T>, bytes);
    PLURALIGN_LAUNCH((lora_input_kernel<T>), dim3(unsigned(tiles), unsigned(ceil_div(c.in, 64))), kLoraThreads, bytes, context.stream, c, dx);
  }
};

Launches prepare(Context& context, const LinearCall& call) {
  Launches l{context, {}, lora_ranks(context, call), 0, 0};
  if (l.ranks.most == 0) return l;
  const Plan& plan = *call.plan;
  const RowTiles& tiles = row_tiles(context, plan);
  l.tiles = tiles.count;
  Lora& c = l.c;
  c.tiles = tiles.tiles;
  c.runs = plan.on_device.run;
  c.row_keys = plan.on_device.row_keys;
  c.rows = call.rows;
  c.run_count = plan.host.runs;
  c.in = call.in;
  c.h_stride = call.h_stride;
  c.stride = ceil_div(l.ranks.most, 8) * 8;
  c.x = call.x;
  c.count = call.count;
  float* middle = l.ranks.core ? context.scratch<float>(kSlotB, call.count * c.rows * c.stride) : nullptr;
  for (int i = 0; i < call.count; ++i) {
    const LinearPart& p = call.part[i];
    LoraPart& to = c.part[i];
    to.modules = p.modules;
    to.out = p.out;
    to.ldy = p.ldy;
    to.stream = p.stream;
    to.dy = p.dy;
    to.y = p.y;
    to.h = p.h;
    to.middle = middle ? middle + i * c.rows * c.stride : nullptr;
    if (p.modules) l.widest = std::max(l.widest, p.out);
  }
  return l;
}

}  // namespace

void lora(Context& context, const LinearCall& call) {
  if (call.rows <= 0) return;
  Launches l = prepare(context, call);
  if (l.tiles == 0) return;
  if (call.storage == kF32) {
    l.down<float, false>();
    l.up<float, float>();
  } else {
    l.down<bf16, false>();
    if (call.residual) l.up<bf16, float>();
    else l.up<bf16, bf16>();
  }
  context.check("low-rank products");
}

void lora_backward(Context& context, const LinearCall& call) {
  if (call.rows <= 0) return;
  Launches l = prepare(context, call);
  if (l.tiles == 0) return;
  const int64_t size = l.c.rows * l.c.stride;
  float *dc = context.scratch<float>(kSlotC, call.count * size), *low = l.ranks.core ? context.scratch<float>(kSlotD, call.count * size) : nullptr;
  for (int i = 0; i < call.count; ++i) {
    l.c.part[i].dc = dc + i * size;
    if (low) l.c.part[i].low = low + i * size;
  }
  if (call.storage == kF32) {
    l.down<float, true>();
    if (call.dx) l.input<float>(call.dx);
  } else {
    l.down<bf16, true>();
    if (call.dx) l.input<bf16>(call.dx);
  }
  lora_factors(context, l.c, l.ranks, call.storage);
  context.check("gradients of low-rank products");
}

}  // namespace pluralign::cuda
