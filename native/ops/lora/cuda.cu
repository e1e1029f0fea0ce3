// Low-rank products of adapters on the GPU, grouped: a block takes up to 64 rows of one adapter, of whatever rank. Sums over
// the width run in stretches of fixed length, so that a row's result does not depend on how many rows there are.
#include "cuda/context.h"
#include "ops/lora/cuda.cuh"

namespace pluralign::cuda {
namespace {

using device::LinearCall;
using device::LinearPart;
using device::PlanRun;

constexpr int64_t kSplit = 1024;  // of the width that one block adds up

// What all kernels of one call know.
struct Lora {
  const RowTile* tiles;
  const PlanRun* runs;
  const LoraModule* modules;
  const uint64_t* row_keys;
  int64_t rows, run_count, in, out, ldy, h_stride, stride, splits;  // stride: of the rows below, the largest rank rounded up
  uint64_t stream;
  const void* x;    // [rows × in]
  const float* dy;  // [rows × ldy]
  float* h;         // [rows × h_stride]
  float* parts;     // [splits × rows × stride]: what stretches of the width add up to
  float* middle;    // [rows × stride]: core · h, of modules with a core
  float* dc;        // [rows × stride]: scale · dy B
  float* low;       // [rows × stride]: gradient of h, of modules with a core
};

// parts (+)= x Aᵀ, or scale · dy B: of one stretch of the width.
template <class T, bool back, int kN>
__global__ void __launch_bounds__(kLoraThreads, 3) lora_down_kernel(Lora c) {
  using Tiles = TileProduct<T, kTileRows, kN, 64, false, back, 4, 1>;
  const RowTile t = c.tiles[blockIdx.x];
  const int64_t n0 = int64_t(blockIdx.z) * kN, width = back ? c.out : c.in, begin = int64_t(blockIdx.y) * kSplit, end = begin + kSplit < width ? begin + kSplit : width;
  const LoraModule m = c.modules[t.adapter];
  if (n0 >= m.r) return;
  SharedMemory shared;
  Tiles product;
  product.clear();
  int64_t k = begin - 64;
  if constexpr (back) {
    product.template run<Source<T, float>, Source<T, float>>(shared, [&](auto& a, auto& b) {
      if ((k += 64) >= end) return false;
      a = source<T>(c.dy + t.row * c.ldy + k, c.ldy, t.rows, end - k);
      b = source<T>(m.b + k * m.r + n0, m.r, end - k, m.r - n0);
      return true;
    });
  } else {
    const T* x = static_cast<const T*>(c.x) + t.row * c.in;
    const Drop drop = drop_of(m, c.stream, c.row_keys, t.row);
    product.template run<DroppedSource<T, T>, Source<T, float>>(shared, [&](auto& a, auto& b) {
      if ((k += 64) >= end) return false;
      a = {source<T>(x + k, c.in, t.rows, end - k), drop, k};
      b = source<T>(m.a + n0 * c.in + k, c.in, m.r - n0, end - k);
      return true;
    });
  }
  float* to = c.parts + (int64_t(blockIdx.y) * c.rows + t.row) * c.stride + n0;
  const float scale = back ? m.scale : 1.f;
  product.each([&](int i, int j, float u, float v) {
    if (i >= t.rows) return;
    if (n0 + j < m.r) to[i * c.stride + j] = scale * u;
    if (n0 + j + 1 < m.r) to[i * c.stride + j + 1] = scale * v;
  });
}

// Adds up the stretches, into h or dc, and goes through the core: middle from h, and low from dc. A block takes kFinishRows rows.
constexpr int kFinishRows = 8;
template <bool back>
__global__ void __launch_bounds__(kLoraThreads) lora_finish_kernel(Lora c) {
  const RowTile t = c.tiles[blockIdx.x];
  const LoraModule m = c.modules[t.adapter];
  const int64_t first = int64_t(blockIdx.y) * kFinishRows, rows = t.rows - first < kFinishRows ? t.rows - first : kFinishRows, row = t.row + first;
  if (m.r <= 0 || rows <= 0) return;
  SharedMemory shared;
  float* sums = shared.take<float>(kFinishRows * c.stride);
  float* to = back ? c.dc : c.h;
  const int64_t ld = back ? c.stride : c.h_stride;
  for (int64_t e = threadIdx.x; e < rows * m.r; e += kLoraThreads) {
    const int64_t i = e / m.r, j = e % m.r;
    float sum = 0;
    for (int64_t s = 0; s < c.splits; ++s) sum += c.parts[(s * c.rows + row + i) * c.stride + j];
    to[(row + i) * ld + j] = sums[i * c.stride + j] = sum;
  }
  if (m.core_rows == 0) return;
  __syncthreads();
  for (int64_t e = threadIdx.x; e < rows * m.r; e += kLoraThreads) {
    const int64_t i = e / m.r, j = e % m.r;
    const float *h = c.h + (row + i) * c.h_stride, *mine = sums + i * c.stride;
    float up = 0, down = 0;
    if (m.core_rows == 1) {
      up = (back ? h : mine)[j] * m.core[j];
      down = mine[j] * m.core[j];
    } else {
      for (int64_t p = 0; p < m.r; ++p) {
        up += (back ? h : mine)[p] * m.core[j * m.r + p];
        if (back) down += mine[p] * m.core[p * m.r + j];
      }
    }
    c.middle[(row + i) * c.stride + j] = up;
    if (back) c.low[(row + i) * c.stride + j] = down;
  }
}

// y += scale · middle Bᵀ, or dx += low A, dropped as x was: 64 rows by 64 columns.
template <class T, bool back, class Y>
__global__ void __launch_bounds__(kLoraThreads, 3) lora_up_kernel(Lora c, Y* y, int64_t ldy) {
  using Tiles = TileProduct<T, kTileRows, 64, 32, false, back, 2, 2>;
  const RowTile t = c.tiles[blockIdx.x];
  const LoraModule m = c.modules[t.adapter];
  if (m.r <= 0) return;
  const int64_t n0 = int64_t(blockIdx.y) * 64, width = back ? c.in : c.out;
  const bool core = m.core_rows > 0;
  const float* low = back ? (core ? c.low : c.dc) : (core ? c.middle : c.h);
  const int64_t ld = back || core ? c.stride : c.h_stride;
  SharedMemory shared;
  Tiles product;
  product.clear();
  int64_t k = -32;
  product.template run<Source<T, float>, Source<T, float>>(shared, [&](auto& a, auto& b) {
    if ((k += 32) >= m.r) return false;
    a = source<T>(low + t.row * ld + k, ld, t.rows, m.r - k);
    if constexpr (back) b = source<T>(m.a + k * c.in + n0, c.in, m.r - k, c.in - n0);
    else b = source<T>(m.b + n0 * m.r + k, m.r, c.out - n0, m.r - k);
    return true;
  });
  // Through shared memory, so that rows are read and written in whole chunks.
  __syncthreads();
  constexpr int kStride = 64 + 4;
  float* tile = SharedMemory().take<float>(kTileRows * kStride);
  const float scale = back ? 1.f : m.scale;
  product.each([&](int i, int j, float u, float v) { tile[i * kStride + j] = scale * u, tile[i * kStride + j + 1] = scale * v; });
  __syncthreads();
  constexpr int kY = kChunk<Y>;
  const bool aligned = chunks_aligned<Y>(y + t.row * ldy + n0, ldy);
  const Drop drop = drop_of(m, c.stream, c.row_keys, t.row);
  for (int e = int(threadIdx.x); e < kTileRows * (64 / kY); e += kLoraThreads) {
    const int i = e / (64 / kY), j = e % (64 / kY) * kY;
    const int64_t valid = i < t.rows ? width - n0 - j : 0;
    if (valid <= 0) continue;
    Y* to = y + (t.row + i) * ldy + n0 + j;
    float sum[kY], was[kY];
    load_floats(was, to, valid, aligned);
    const uint64_t key = back && drop.row_keys ? drop.key(i) : 0;
#pragma unroll
    for (int f = 0; f < kY; ++f) {
      sum[f] = tile[i * kStride + j + f];
      if (back && drop.row_keys) sum[f] *= drop.of(key, n0 + j + f);
      sum[f] += was[f];
    }
    if (aligned && valid >= kY) {
      *reinterpret_cast<uint4*>(to) = pack_chunk(sum);
    } else {
      for (int f = 0; f < kY && f < valid; ++f) store(to + f, sum[f]);
    }
  }
}

// Gradients of factors: which one, and how a module names it.
enum Factor { kA, kB, kCore, kVector };  // the last two: cores that are matrices, and vectors
template <Factor factor>
struct Gradient {
  __device__ float* operator()(const LoraModule& m) const { return factor == kA ? m.da : factor == kB ? m.db : (m.core_rows == 1) == (factor == kVector) ? m.dcore : nullptr; }
};

// da += lowᵀ x, db += scale · dyᵀ middle (the other way round), dcore += dcᵀ h: over all rows of the runs that share the factor,
// by the block of the first of them. With several windows of rows their sums go to `windows` and are added up afterwards.
template <class T, Factor factor, int kR>
__global__ void __launch_bounds__(kLoraThreads, 3) lora_factor_kernel(Lora c, int64_t rank_tiles, int64_t column_tiles, int64_t window, float* windows) {
  constexpr int kN = kR == 16 ? 128 : 64, kK = 32;
  using Tiles = TileProduct<T, kR, kN, kK, true, true, kR == 16 ? 1 : 2, kR == 16 ? 4 : 2>;
  int64_t block = blockIdx.x;
  const int64_t n0 = block % column_tiles * kN;
  block /= column_tiles;
  const int64_t j0 = block % rank_tiles * kR, self = block / rank_tiles;
  SharedMemory shared;
  uint32_t* room = shared.take<uint32_t>(kLoraThreads / kWarp);
  const int64_t begin = int64_t(blockIdx.y) * window;
  SharingRows<Gradient<factor>> rows(c.runs, c.run_count, c.modules, {}, self, begin, begin + window, room);
  if (!rows.leads()) return;
  const LoraModule mine = c.modules[c.runs[self].adapter];
  const int64_t r = mine.r, width = factor == kA ? c.in : factor == kB ? c.out : r;
  if (j0 >= r || n0 >= width) return;
  Tiles product;
  product.clear();
  const auto sources = [&](auto& a, auto& b) {
    int64_t row, count;
    int adapter;
    if (!rows.next(kK, row, count, adapter)) return false;
    const LoraModule& m = c.modules[adapter];
    [[maybe_unused]] const bool core = m.core_rows > 0;
    if constexpr (factor == kA) {
      a = source<T>((core ? c.low : c.dc) + row * c.stride + j0, c.stride, count, r - j0);
      b = {source<T>(static_cast<const T*>(c.x) + row * c.in + n0, c.in, count, c.in - n0), drop_of(m, c.stream, c.row_keys, row), n0};
    } else if constexpr (factor == kB) {
      const int64_t ld = core ? c.stride : c.h_stride;
      a = {source<T>((core ? c.middle : c.h) + row * ld + j0, ld, count, r - j0), m.scale};
      b = source<T>(c.dy + row * c.ldy + n0, c.ldy, count, c.out - n0);
    } else {
      a = source<T>(c.dc + row * c.stride + j0, c.stride, count, r - j0);
      b = source<T>(c.h + row * c.h_stride + n0, c.h_stride, count, r - n0);
    }
    return true;
  };
  if constexpr (factor == kA) product.template run<Source<T, float>, DroppedSource<T, T>>(shared, sources);
  else if constexpr (factor == kB) product.template run<ScaledSource<T, float>, Source<T, float>>(shared, sources);
  else product.template run<Source<T, float>, Source<T, float>>(shared, sources);
  // Element (j, n) of da and dcore stands at j · width + n, of db at n · r + j.
  float* sums = windows ? windows + (int64_t(blockIdx.y) * c.run_count + self) * c.stride * (factor == kA ? c.in : factor == kB ? c.out : c.stride) : Gradient<factor>()(mine);
  const auto put = [&](int64_t j, int64_t n, float v) {
    if (j >= r || n >= width) return;
    float* to = sums + (factor == kB ? n * r + j : j * width + n);
    *to = windows ? v : *to + v;
  };
  product.each([&](int i, int j, float u, float v) {
    put(j0 + i, n0 + j, u);
    put(j0 + i, n0 + j + 1, v);
  });
}

// Adds the windows of one run's factor to its gradient.
template <Factor factor>
__global__ void __launch_bounds__(kLoraThreads) lora_windows_kernel(Lora c, const float* windows, int64_t count) {
  const int64_t self = blockIdx.y;
  SharedMemory shared;
  SharingRows<Gradient<factor>> rows(c.runs, c.run_count, c.modules, {}, self, 0, 0, shared.take<uint32_t>(kLoraThreads / kWarp));
  if (!rows.leads()) return;
  const LoraModule& m = c.modules[c.runs[self].adapter];
  const int64_t width = factor == kA ? c.in : c.out, i = int64_t(blockIdx.x) * kLoraThreads + threadIdx.x;
  if (i >= m.r * width) return;
  float sum = 0;
  for (int64_t w = 0; w < count; ++w) sum += windows[(w * c.run_count + self) * c.stride * width + i];
  Gradient<factor>()(m)[i] += sum;
}

// dcore += Σ dc · h where the core is a vector. A block takes a run's core, its threads coordinates.
__global__ void __launch_bounds__(kLoraThreads) lora_vector_kernel(Lora c) {
  SharedMemory shared;
  const int64_t self = blockIdx.x;
  SharingRows<Gradient<kVector>> rows(c.runs, c.run_count, c.modules, {}, self, 0, c.rows, shared.take<uint32_t>(kLoraThreads / kWarp));
  if (!rows.leads()) return;
  const LoraModule& m = c.modules[c.runs[self].adapter];
  int64_t row, count;
  int adapter;
  // Every thread takes part in finding rows; ranks above the block's threads take several rounds of coordinates.
  while (rows.next(c.rows, row, count, adapter))
    for (int64_t j = threadIdx.x; j < m.r; j += kLoraThreads) {
      float sum = 0;
      for (int64_t i = row; i < row + count; ++i) sum += c.dc[i * c.stride + j] * c.h[i * c.h_stride + j];
      m.dcore[j] += sum;
    }
}

// ---- host

// Tiles of rows by adapter, made at a plan's first call.
struct RowTiles : Plan::Schedule {
  RowTiles(Context& c, const Plan& plan) : context(&c) {
    std::vector<RowTile> list;
    for (int64_t u = 0; u < plan.host.runs; ++u) {
      const PlanRun& run = plan.host.run[u];
      for (int64_t i = 0; run.adapter >= 0 && i < run.rows; i += kTileRows) list.push_back({run.row + i, int32_t(std::min<int64_t>(kTileRows, run.rows - i)), run.adapter});
    }
    count = int64_t(list.size());
    if (count == 0) return;
    tiles = static_cast<RowTile*>(c.allocate(list.size() * sizeof(RowTile), "a plan's tiles"));
    c.upload(tiles, list.data(), list.size() * sizeof(RowTile));
  }
  ~RowTiles() override {
    if (tiles) context->release(tiles);
  }
  Context* context;
  RowTile* tiles = nullptr;
  int64_t count = 0;
};

const RowTiles& tiles_of(Context& context, const Plan& plan) {
  auto& made = const_cast<Plan&>(plan).schedules["lora"];
  if (!made) made = std::make_unique<RowTiles>(context, plan);
  return static_cast<const RowTiles&>(*made);
}

struct Ranks {
  int64_t most = 0, core = 0;  // of modules on rows of the plan; of those with a core
  bool da = false, db = false, vector = false, matrix = false;
};
Ranks ranks_of(const Plan& plan, const LinearPart& part) {
  Ranks out;
  for (int64_t u = 0; u < plan.host.runs; ++u) {
    if (plan.host.run[u].adapter < 0) continue;
    const LoraModule& m = part.host_modules[plan.host.run[u].adapter];
    if (m.r <= 0) continue;
    out.most = std::max(out.most, m.r);
    if (m.core_rows > 0) out.core = std::max(out.core, m.r);
    out.da = out.da || m.da;
    out.db = out.db || m.db;
    out.vector = out.vector || (m.core_rows == 1 && m.dcore);
    out.matrix = out.matrix || (m.core_rows > 1 && m.dcore);
  }
  return out;
}

struct Launches {
  Context& context;
  Lora c;
  Ranks ranks;
  int64_t tiles;

  template <class T, bool back, int kN>
  void down_of() {
    using Tiles = TileProduct<T, kTileRows, kN, 64, false, back, 4, 1>;
    allow_shared(context, lora_down_kernel<T, back, kN>, Tiles::bytes());
    PLURALIGN_LAUNCH((lora_down_kernel<T, back, kN>), dim3(unsigned(tiles), unsigned(c.splits), unsigned(ceil_div(ranks.most, kN))), kLoraThreads, Tiles::bytes(), context.stream, c);
  }
  template <class T, bool back>
  void down() {
    c.splits = ceil_div(back ? c.out : c.in, kSplit);
    c.parts = context.scratch<float>(kSlotA, c.splits * c.rows * c.stride);
    if constexpr (sizeof(T) == 2) {
      if (ranks.most > 16) down_of<T, back, 64>();
      else down_of<T, back, 16>();
    } else {
      down_of<T, back, 16>();
    }
    PLURALIGN_LAUNCH((lora_finish_kernel<back>), dim3(unsigned(tiles), kTileRows / kFinishRows), kLoraThreads, SharedMemory::bytes<float>(kFinishRows * c.stride), context.stream, c);
  }
  template <class T, bool back, class Y>
  void up(Y* y, int64_t ldy) {
    using Tiles = TileProduct<T, kTileRows, 64, 32, false, back, 2, 2>;
    const size_t bytes = std::max(Tiles::bytes(), SharedMemory::bytes<float>(kTileRows * 68));
    allow_shared(context, lora_up_kernel<T, back, Y>, bytes);
    PLURALIGN_LAUNCH((lora_up_kernel<T, back, Y>), dim3(unsigned(tiles), unsigned(ceil_div(back ? c.in : c.out, 64))), kLoraThreads, bytes, context.stream, c, y, ldy);
  }
  template <class T, Factor factor, int kR>
  void factor_of() {
    constexpr int kN = kR == 16 ? 128 : 64;
    using Tiles = TileProduct<T, kR, kN, 32, true, true, kR == 16 ? 1 : 2, kR == 16 ? 4 : 2>;
    const size_t bytes = Tiles::bytes() + SharedMemory::bytes<uint32_t>(kLoraThreads / kWarp);
    const int64_t width = factor == kA ? c.in : factor == kB ? c.out : ranks.core;
    const int64_t rank_tiles = ceil_div(factor == kCore ? ranks.core : ranks.most, kR), column_tiles = ceil_div(width, kN), blocks_of_window = rank_tiles * column_tiles * c.run_count;
    // Few factors over many rows: windows of rows, as many as keep a large device busy; fixed by shapes, so that sums repeat.
    int64_t windows = factor == kCore ? 1 : std::min(ceil_div(264, blocks_of_window), ceil_div(c.rows, 256));
    const int64_t window = ceil_div(ceil_div(c.rows, windows), 32) * 32;
    windows = ceil_div(c.rows, window);
    float* sums = windows > 1 ? context.scratch<float>(kSlotA, windows * c.run_count * c.stride * width) : nullptr;
    allow_shared(context, lora_factor_kernel<T, factor, kR>, bytes);
    PLURALIGN_LAUNCH((lora_factor_kernel<T, factor, kR>), dim3(unsigned(blocks_of_window), unsigned(windows)), kLoraThreads, bytes, context.stream, c, rank_tiles, column_tiles, window, sums);
    if (sums)
      PLURALIGN_LAUNCH((lora_windows_kernel<factor>), dim3(unsigned(ceil_div(ranks.most * width, kLoraThreads)), unsigned(c.run_count)), kLoraThreads,
                       SharedMemory::bytes<uint32_t>(kLoraThreads / kWarp), context.stream, c, sums, windows);
  }
  template <class T, Factor factor>
  void gradient() {
    if constexpr (sizeof(T) == 2) {
      if (ranks.most > 16) factor_of<T, factor, 64>();
      else factor_of<T, factor, 16>();
    } else {
      factor_of<T, factor, 16>();
    }
  }
  template <class T>
  void backward(float* dx) {
    down<T, true>();
    if (dx) up<T, true>(dx, c.in);
    if (ranks.da) gradient<T, kA>();
    if (ranks.db) gradient<T, kB>();
    if (ranks.matrix) gradient<float, kCore>();
    if (ranks.vector) PLURALIGN_LAUNCH(lora_vector_kernel, blocks(c.run_count), kLoraThreads, SharedMemory::bytes<uint32_t>(kLoraThreads / kWarp), context.stream, c);
  }
};

Launches prepare(Context& context, const LinearCall& call, int index) {
  const LinearPart& p = call.part[index];
  const Plan& plan = *call.plan;
  const RowTiles& tiles = tiles_of(context, plan);
  const Ranks ranks = ranks_of(plan, p);
  Lora c{};
  c.tiles = tiles.tiles;
  c.runs = plan.on_device.run;
  c.modules = p.modules;
  c.row_keys = plan.on_device.row_keys;
  c.rows = call.rows;
  c.run_count = plan.host.runs;
  c.in = call.in;
  c.out = p.out;
  c.ldy = p.ldy;
  c.h_stride = call.h_stride;
  c.stride = ceil_div(ranks.most, 8) * 8;
  c.stream = p.stream;
  c.x = call.x;
  c.dy = p.dy;
  c.h = p.h;
  c.middle = ranks.core ? context.scratch<float>(kSlotB, c.rows * c.stride) : nullptr;
  return {context, c, ranks, tiles.count};
}

}  // namespace

void lora(Context& context, const LinearCall& call, int index) {
  const LinearPart& p = call.part[index];
  if (!p.modules || call.rows <= 0) return;
  Launches l = prepare(context, call, index);
  if (l.ranks.most == 0 || l.tiles == 0) return;
  if (call.storage == kF32) {
    l.down<float, false>();
    l.up<float, false>(static_cast<float*>(p.y), p.ldy);
  } else {
    l.down<bf16, false>();
    if (call.residual) l.up<bf16, false>(static_cast<float*>(p.y), p.ldy);
    else l.up<bf16, false>(static_cast<bf16*>(p.y), p.ldy);
  }
  context.check("low-rank products");
}

void lora_backward(Context& context, const LinearCall& call, int index) {
  if (!call.part[index].modules || call.rows <= 0) return;
  Launches l = prepare(context, call, index);
  if (l.ranks.most == 0 || l.tiles == 0) return;
  l.c.dc = context.scratch<float>(kSlotC, l.c.rows * l.c.stride);
  if (l.ranks.core) l.c.low = context.scratch<float>(kSlotD, l.c.rows * l.c.stride);
  if (call.storage == kF32) l.backward<float>(call.dx);
  else l.backward<bf16>(call.dx);
  context.check("gradients of low-rank products");
}

}  // namespace pluralign::cuda
