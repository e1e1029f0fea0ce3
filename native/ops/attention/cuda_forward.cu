// Attention over the prefix forest on the GPU: a block takes a tile of queries along its path, with a running maximum and sum
// (Milakov and Gimelshein 2018; Dao et al. 2022). Keys are taken by position, so that a row's result does not depend on packing.
#include "ops/attention/cuda.cuh"

namespace pluralign::cuda {
namespace {

constexpr float kNone = -INFINITY;

template <class T, int kD>
constexpr int kKeys = sizeof(T) == 2 ? 64 : kD <= 64 ? 32 : 16;  // at a time

template <class T, int kD>
constexpr size_t forward_bytes() {
  using Queries = Tile<T, kTileQueries, kD, false>;
  using Keys = Tile<T, kKeys<T, kD>, kD, false>;
  return SharedMemory::bytes<T>(Queries::kSize) + 2 * SharedMemory::bytes<T>(2 * Keys::kSize) + SharedMemory::bytes<int64_t>(2 * kKeys<T, kD>);
}

template <class T, int kD>
__global__ void __launch_bounds__(kAttentionThreads) attention_kernel(Attention<T> c, T* out) {
  constexpr int kN = kKeys<T, kD>;
  using Scores = TileProduct<T, kTileQueries, kN, kD, false, false, 4, 1>;
  using Keys = typename Scores::B;
  const QueryTile tile = c.query_tiles[blockIdx.x];
  const device::PlanNode node = c.nodes[tile.node];
  if (node.rows == 0) return;  // of a standing plan; the whole block
  const int64_t head = blockIdx.y;  // of keys
  const int group = c.group();
  SharedMemory shared;
  T *queries = shared.take<T>(Scores::A::kSize), *keys = shared.take<T>(2 * Keys::kSize), *values = shared.take<T>(2 * Keys::kSize);
  int64_t* rows = shared.take<int64_t>(2 * kN);

  const int64_t first = node.prefix + tile.first / group, last = node.prefix + (tile.first + tile.count - 1) / group;  // positions
  const int64_t begin = c.window > 0 && first >= c.window ? (first - c.window + 1) / kN : 0, end = last / kN + 1;       // tiles of keys
  const auto load = [&](int64_t t, int buffer) {
    copy_keys<T, kD, kN>(c, keys + buffer * Keys::kSize, values + buffer * Keys::kSize, rows + buffer * kN, head);
    commit_copies();
  };
  copy_queries<T, kD, kTileQueries>(c, queries, c.packed, c.vectors(), node, tile.first, tile.first + tile.count, head);
  find_keys(rows, kN, node, c.spans, begin * kN);
  __syncthreads();
  load(begin, 0);
  find_keys(rows + kN, kN, node, c.spans, (begin + 1) * kN);

  const int lane = int(threadIdx.x) % kWarp, line = int(threadIdx.x) / kWarp * 16 + lane / 4, column = lane % 4 * 2;
  int64_t position[2];
  for (int e = 0; e < 2; ++e) position[e] = node.prefix + (tile.first + (line + 8 * e < tile.count ? line + 8 * e : 0)) / group;
  float top[2] = {kNone, kNone}, sum[2] = {0, 0};
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
    Scores s;
    s.clear();
    s.step(queries, keys + buffer * Keys::kSize);
    if (t * kN + kN - 1 > first || (c.window > 0 && last - t * kN >= c.window)) {
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (!c.sees(position[i / 2], t * kN + 8 * j + column + i % 2)) s.sums[0][j][i] = kNone;
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float most = top[e];
#pragma unroll
      for (int j = 0; j < kN / 8; ++j) most = fmaxf(most, fmaxf(s.sums[0][j][2 * e], s.sums[0][j][2 * e + 1]));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kAllLanes, most, 2));
      const float base = most == kNone ? 0.f : most * scale, shrink = exp2f(top[e] * scale - base);
      top[e] = most;
      float total = 0;
#pragma unroll
      for (int j = 0; j < kN / 8; ++j)
#pragma unroll
        for (int f = 0; f < 2; ++f) total += s.sums[0][j][2 * e + f] = exp2f(s.sums[0][j][2 * e + f] * scale - base);
      sum[e] = sum[e] * shrink + total;
#pragma unroll
      for (int j = 0; j < kD / 8; ++j) result.sums[0][j][2 * e] *= shrink, result.sums[0][j][2 * e + 1] *= shrink;
    }
    multiply_held<T, kN, kD>(result, s.sums, values + buffer * Keys::kSize);
  }
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    sum[e] += __shfl_xor_sync(kAllLanes, sum[e], 1);
    sum[e] += __shfl_xor_sync(kAllLanes, sum[e], 2);
    if (line + 8 * e >= tile.count) continue;
    const int64_t q = tile.first + line + 8 * e, vector = (node.row + q / group) * c.heads + head * group + q % group;
    if (c.lse && lane % 4 == 0) c.lse[vector] = top[e] * scale + log2f(sum[e]);
    const float share = 1 / sum[e];
    T* to = out + vector * c.head_dim;
#pragma unroll
    for (int j = 0; j < kD / 8; ++j) {
      const int64_t d = 8 * j + column;
      if (d < c.head_dim) store(to + d, result.sums[0][j][2 * e] * share);
      if (d + 1 < c.head_dim) store(to + d + 1, result.sums[0][j][2 * e + 1] * share);
    }
  }
}

// A plan's keys and values into the cache: every row of a node is a query of one tile. A thread takes 16 bytes at a time.
template <class T, int kD>
__global__ void __launch_bounds__(kAttentionThreads) keep_kernel(Attention<T> c, T* cache) {
  constexpr int kLine = kD / kChunk<T>;
  const QueryTile tile = c.query_tiles[blockIdx.x];
  const device::PlanNode node = c.nodes[tile.node];
  if (node.rows == 0) return;
  const int64_t head = blockIdx.y, to = c.spans[node.first_span].row + node.prefix;
  for (int i = int(threadIdx.x); i < tile.count * 2 * kLine; i += kAttentionThreads) {
    const int64_t e = tile.first + i / (2 * kLine), row = e / c.group();
    if (e % c.group() != 0) continue;
    const int64_t vector = i / kLine % 2 * c.kv_heads + head, at = i % kLine * kChunk<T>;
    *reinterpret_cast<uint4*>(cache + ((to + row) * 2 * c.kv_heads + vector) * kD + at) =
        *reinterpret_cast<const uint4*>(c.packed + ((node.row + row) * c.vectors() + c.heads + vector) * kD + at);
  }
}

template <class T, int kD>
void start(Context& context, const device::AttentionCall& call, void* cache) {
  const AttentionTiles& schedule = attention_tiles(context, *call.plan, call.heads / call.kv_heads, false);
  Attention<T> a = prepare_attention<T, kD>(context, call, schedule);
  const int64_t tiles = schedule.query_count;
  if (cache) {
    PLURALIGN_LAUNCH((keep_kernel<T, kD>), dim3(unsigned(tiles), unsigned(call.kv_heads)), kAttentionThreads, 0, context.stream, a, static_cast<T*>(cache));
    a.keys = static_cast<const T*>(cache);
    a.key_vectors = 2 * call.kv_heads;
  }
  check_shared(context, forward_bytes<T, kD>());
  allow_shared(context, attention_kernel<T, kD>, forward_bytes<T, kD>());
  PLURALIGN_LAUNCH((attention_kernel<T, kD>), dim3(unsigned(tiles), unsigned(call.kv_heads)), kAttentionThreads, (forward_bytes<T, kD>()), context.stream, a, static_cast<T*>(call.out));
}

void attend(Context& context, const device::AttentionCall& call, void* cache) {
  check_attention(call);
  if (call.plan->host.rows <= 0) return;
  const bool narrow = call.head_dim <= 64;
  if (call.storage == kF32) narrow ? start<float, 64>(context, call, cache) : start<float, 128>(context, call, cache);
  else narrow ? start<bf16, 64>(context, call, cache) : start<bf16, 128>(context, call, cache);
  context.check("attention");
}

}  // namespace

void attention(Context& context, const device::AttentionCall& call) { attend(context, call, nullptr); }

void attention_cached(Context& context, const device::CachedAttentionCall& call) {
  const PlanArrays& p = call.forward.plan->host;
  for (int64_t n = 0; n < p.nodes; ++n)
    if (p.node[n].spans != 1 || p.span[p.node[n].first_span].rows != p.node[n].prefix + p.node[n].rows)
      throw Failure(device::Status::bad_argument, "attention: a node that continues a sequence has one span, its own rows the last of it");
  attend(context, call.forward, call.cache);
}

}  // namespace pluralign::cuda
