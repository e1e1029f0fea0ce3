// Gradients of attention on the GPU (Dao et al. 2022, without atomic sums): one kernel takes queries along their path for dq, one
// takes keys and every query that sees them, in the order of nodes, for dk and dv. Scores are computed again from lse.
#include <algorithm>

#include "ops/attention/cuda.cuh"

namespace pluralign::cuda {
namespace {

// A warp takes one head of a row: its gradient as T, and dout · out.
template <class T, int kD>
__global__ void __launch_bounds__(kAttentionThreads) dout_kernel(T* packed, float* delta, const float* dout, const T* out, int64_t vectors, int64_t width) {
  const int64_t vector = int64_t(blockIdx.x) * (kAttentionThreads / kWarp) + threadIdx.x / kWarp;
  if (vector >= vectors) return;  // a whole warp
  float sum = 0;
#pragma unroll
  for (int d = int(threadIdx.x) % kWarp; d < kD; d += kWarp) {
    const float g = d < width ? dout[vector * width + d] : 0.f;
    if (d < width) sum += g * load(out[vector * width + d]);
    store(packed + vector * kD + d, g);
  }
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) delta[vector] = sum;
}

template <class T, int kD>
constexpr int kQueryKeys = kD > 64 ? (sizeof(T) == 2 ? 32 : 16) : sizeof(T) == 2 ? 64 : 32;  // keys at a time
template <class T, int kD>
constexpr size_t query_bytes() {
  return 2 * SharedMemory::bytes<T>(Tile<T, kTileQueries, kD, false>::kSize) + 2 * SharedMemory::bytes<T>(2 * Tile<T, kQueryKeys<T, kD>, kD, false>::kSize) +
         SharedMemory::bytes<int64_t>(2 * kQueryKeys<T, kD>);
}

// dq of a tile of queries.
template <class T, int kD>
__global__ void __launch_bounds__(kAttentionThreads) query_gradient_kernel(Attention<T> c) {
  constexpr int kN = kQueryKeys<T, kD>;
  using Scores = TileProduct<T, kTileQueries, kN, kD, false, false, 4, 1>;
  using Keys = typename Scores::B;
  const QueryTile tile = c.query_tiles[blockIdx.x];
  const device::PlanNode node = c.nodes[tile.node];
  const int64_t head = blockIdx.y;
  const int group = c.group();
  SharedMemory shared;
  T *queries = shared.take<T>(Scores::A::kSize), *gradients = shared.take<T>(Scores::A::kSize), *keys = shared.take<T>(2 * Keys::kSize), *values = shared.take<T>(2 * Keys::kSize);
  int64_t* rows = shared.take<int64_t>(2 * kN);

  const int64_t first = node.prefix + tile.first / group, last = node.prefix + (tile.first + tile.count - 1) / group;
  const int64_t begin = c.window > 0 && first >= c.window ? (first - c.window + 1) / kN : 0, end = last / kN + 1;
  const auto load = [&](int64_t t, int buffer) {
    copy_keys<T, kD, kN>(c, keys + buffer * Keys::kSize, values + buffer * Keys::kSize, rows + buffer * kN, head);
    commit_copies();
  };
  copy_queries<T, kD, kTileQueries>(c, queries, c.packed, c.vectors(), node, tile.first, tile.first + tile.count, head);
  copy_queries<T, kD, kTileQueries>(c, gradients, c.dout, c.heads, node, tile.first, tile.first + tile.count, head);
  find_keys(rows, kN, node, c.spans, begin * kN);
  __syncthreads();
  load(begin, 0);
  find_keys(rows + kN, kN, node, c.spans, (begin + 1) * kN);

  const int lane = int(threadIdx.x) % kWarp, line = int(threadIdx.x) / kWarp * 16 + lane / 4, column = lane % 4 * 2;
  int64_t position[2], vector[2];
  float lse[2], delta[2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int64_t q = tile.first + (line + 8 * e < tile.count ? line + 8 * e : 0);
    position[e] = node.prefix + q / group;
    vector[e] = (node.row + q / group) * c.heads + head * group + q % group;
    lse[e] = c.lse[vector[e]];
    delta[e] = c.delta[vector[e]];
  }
  const float scale = c.scale * kLog2E;
  TileProduct<T, kTileQueries, kD, kN, false, true, 4, 1> result;
  result.clear();
  for (int64_t t = begin; t < end; ++t) {
    const int buffer = int((t - begin) & 1);
    wait_copies<0>();
    __syncthreads();
    if (t + 1 < end) {
      load(t + 1, buffer ^ 1);
      find_keys(rows + buffer * kN, kN, node, c.spans, (t + 2) * kN);
    }
    Scores s, dp;
    s.clear();
    dp.clear();
    s.step(queries, keys + buffer * Keys::kSize);
    dp.step(gradients, values + buffer * Keys::kSize);
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool seen = c.sees(position[i / 2], t * kN + 8 * j + column + i % 2);
        const float p = seen ? exp2f(s.sums[0][j][i] * scale - lse[i / 2]) : 0.f;
        s.sums[0][j][i] = seen ? p * (dp.sums[0][j][i] - delta[i / 2]) * c.scale : 0.f;
      }
    multiply_held<T, kN, kD>(result, s.sums, keys + buffer * Keys::kSize);
  }
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (line + 8 * e >= tile.count) continue;
    const int64_t row = vector[e] / c.heads;
    float* to = c.dqkv + (row * c.vectors() + vector[e] % c.heads) * c.head_dim;
#pragma unroll
    for (int j = 0; j < kD / 8; ++j) {
      const int64_t d = 8 * j + column;
      if (d < c.head_dim) to[d] = result.sums[0][j][2 * e];
      if (d + 1 < c.head_dim) to[d + 1] = result.sums[0][j][2 * e + 1];
    }
  }
}

template <class T, int kD>
constexpr int kKeyQueries = sizeof(T) == 4 && kD > 64 ? 16 : 32;  // queries at a time
template <class T, int kD>
constexpr size_t key_bytes() {
  return 2 * SharedMemory::bytes<T>(Tile<T, kTileKeys, kD, false>::kSize) + 2 * SharedMemory::bytes<T>(2 * Tile<T, kKeyQueries<T, kD>, kD, false>::kSize) +
         2 * SharedMemory::bytes<float>(2 * kKeyQueries<T, kD>);
}

// dk and dv of a tile of keys: scores stand the other way round, keys by queries.
template <class T, int kD>
__global__ void __launch_bounds__(kAttentionThreads) key_gradient_kernel(Attention<T> c) {
  constexpr int kN = kKeyQueries<T, kD>;
  using Scores = TileProduct<T, kTileKeys, kN, kD, false, false, 4, 1>;
  using Queries = typename Scores::B;
  const KeyTile tile = c.key_tiles[blockIdx.x];
  const device::PlanNode node = c.nodes[tile.node];
  const int64_t head = blockIdx.y;
  const int group = c.group();
  SharedMemory shared;
  T *keys = shared.take<T>(Scores::A::kSize), *values = shared.take<T>(Scores::A::kSize), *queries = shared.take<T>(2 * Queries::kSize), *gradients = shared.take<T>(2 * Queries::kSize);
  float *lses = shared.take<float>(2 * kN), *deltas = shared.take<float>(2 * kN);

  const int64_t first = node.prefix + tile.first, last = first + tile.count - 1;  // positions of the keys
  const T* of_head = c.packed + (node.row + tile.first) * c.vectors() * kD + (c.heads + head) * kD;
  copy_lines<T, kD, kTileKeys>(keys, c.packed, [&](int line) { return line < tile.count ? of_head + line * c.vectors() * kD : nullptr; });
  copy_lines<T, kD, kTileKeys>(values, c.packed, [&](int line) { return line < tile.count ? of_head + (line * c.vectors() + c.kv_heads) * kD : nullptr; });

  // The queries that see any of the keys: for each node that does, those of its rows · group from `at` to `to`, kN at a time.
  int seer = -1;
  int64_t at = 0, to = 0;
  device::PlanNode from{};
  const auto next = [&] {
    at += kN;
    while (at >= to) {
      if (++seer >= tile.seers) return false;
      from = c.nodes[c.seers[tile.seer + seer]];
      const int64_t low = first > from.prefix ? first - from.prefix : 0;
      const int64_t beyond = c.window > 0 && last + c.window < from.prefix + from.rows ? last + c.window - from.prefix : from.rows;
      at = low * group;
      to = beyond * group;
    }
    return true;
  };
  const auto load = [&](int buffer) {
    copy_queries<T, kD, kN>(c, queries + buffer * Queries::kSize, c.packed, c.vectors(), from, at, to, head);
    copy_queries<T, kD, kN>(c, gradients + buffer * Queries::kSize, c.dout, c.heads, from, at, to, head);
    commit_copies();
    if (int(threadIdx.x) < kN) {
      const int64_t e = at + threadIdx.x, vector = e < to ? (from.row + e / group) * c.heads + head * group + e % group : 0;
      lses[buffer * kN + threadIdx.x] = c.lse[vector];
      deltas[buffer * kN + threadIdx.x] = c.delta[vector];
    }
  };
  const int lane = int(threadIdx.x) % kWarp, line = int(threadIdx.x) / kWarp * 16 + lane / 4, column = lane % 4 * 2;
  const float scale = c.scale * kLog2E;
  TileProduct<T, kTileKeys, kD, kN, false, true, 4, 1> dk, dv;
  dk.clear();
  dv.clear();
  bool more = next();
  if (more) load(0);
  for (int buffer = 0; more; buffer ^= 1) {
    const int64_t begin = at, end = to, prefix = from.prefix;
    wait_copies<0>();
    __syncthreads();
    if ((more = next())) load(buffer ^ 1);
    Scores p, ds;
    p.clear();
    ds.clear();
    p.step(keys, queries + buffer * Queries::kSize);
    ds.step(values, gradients + buffer * Queries::kSize);
#pragma unroll
    for (int j = 0; j < kN / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int query = 8 * j + column + i % 2, key = line + i / 2 * 8;
        const bool seen = begin + query < end && key < tile.count && c.sees(prefix + (begin + query) / group, first + key);
        p.sums[0][j][i] = seen ? exp2f(p.sums[0][j][i] * scale - lses[buffer * kN + query]) : 0.f;
        ds.sums[0][j][i] = seen ? p.sums[0][j][i] * (ds.sums[0][j][i] - deltas[buffer * kN + query]) * c.scale : 0.f;
      }
    multiply_held<T, kN, kD>(dv, p.sums, gradients + buffer * Queries::kSize);
    multiply_held<T, kN, kD>(dk, ds.sums, queries + buffer * Queries::kSize);
  }
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if (line + 8 * e >= tile.count) continue;
    float* k = c.dqkv + ((node.row + tile.first + line + 8 * e) * c.vectors() + c.heads + head) * c.head_dim;
    float* v = k + c.kv_heads * c.head_dim;
#pragma unroll
    for (int j = 0; j < kD / 8; ++j)
#pragma unroll
      for (int f = 0; f < 2; ++f) {
        const int64_t d = 8 * j + column + f;
        if (d >= c.head_dim) continue;
        k[d] = dk.sums[0][j][2 * e + f];
        v[d] = dv.sums[0][j][2 * e + f];
      }
  }
}

template <class T, int kD>
void start(Context& context, const device::AttentionBackwardCall& call) {
  const device::AttentionCall& f = call.forward;
  const AttentionTiles& tiles = attention_tiles(context, *f.plan, f.heads / f.kv_heads, true);
  Attention<T> a = prepare_attention<T, kD>(context, f, tiles);
  const int64_t vectors = f.plan->host.rows * f.heads;
  T* dout = context.scratch<T>(kSlotB, vectors * kD);
  float* delta = context.scratch<float>(kSlotC, vectors);
  PLURALIGN_LAUNCH((dout_kernel<T, kD>), blocks(ceil_div(vectors, kAttentionThreads / kWarp)), kAttentionThreads, 0, context.stream, dout, delta, call.dout, static_cast<const T*>(f.out), vectors,
                   f.head_dim);
  a.dout = dout;
  a.delta = delta;
  a.dqkv = call.dqkv;
  const unsigned heads = unsigned(f.kv_heads);
  check_shared(context, std::max(query_bytes<T, kD>(), key_bytes<T, kD>()));
  allow_shared(context, query_gradient_kernel<T, kD>, query_bytes<T, kD>());
  PLURALIGN_LAUNCH((query_gradient_kernel<T, kD>), dim3(unsigned(tiles.query_count), heads), kAttentionThreads, (query_bytes<T, kD>()), context.stream, a);
  allow_shared(context, key_gradient_kernel<T, kD>, key_bytes<T, kD>());
  PLURALIGN_LAUNCH((key_gradient_kernel<T, kD>), dim3(unsigned(tiles.key_count), heads), kAttentionThreads, (key_bytes<T, kD>()), context.stream, a);
}

}  // namespace

void attention_backward(Context& context, const device::AttentionBackwardCall& call) {
  check_attention(call.forward);
  if (call.forward.plan->host.rows <= 0) return;
  if (!call.forward.lse) throw Failure(device::Status::bad_argument, "attention: the backward pass needs the lse of the forward pass");
  const bool narrow = call.forward.head_dim <= 64;
  if (call.forward.storage == kF32) narrow ? start<float, 64>(context, call) : start<float, 128>(context, call);
  else narrow ? start<bf16, 64>(context, call) : start<bf16, 128>(context, call);
  context.check("gradients of attention");
}

}  // namespace pluralign::cuda
