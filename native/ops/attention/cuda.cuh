// What attention's kernels share. A tile of queries is 64 of one node and key head: the node's rows times the query heads that
// read that key head, rows first, so that short segments fill tiles too. Keys are gathered along the node's path. Queries, keys,
// values and the gradient of the output are first copied as T, each head's vector filled up with zeros to kD numbers.
#pragma once
#include "cuda/context.h"
#include "ops/gemm/tile.cuh"

namespace pluralign::cuda {

constexpr int kAttentionThreads = 128, kTileQueries = 64, kTileKeys = 64;
constexpr float kLog2E = 1.4426950408889634f;

struct QueryTile {  // queries [first, first + count) of a node's rows · group
  int32_t node, first, count;
};
struct KeyTile {  // rows [first, first + count) of a node, and the nodes that see them: seers[seer] …
  int32_t node, first, count, seer, seers;
};

template <class T>
struct Attention {
  const QueryTile* query_tiles;
  const KeyTile* key_tiles;
  const int32_t* seers;
  const device::PlanNode* nodes;
  const device::PlanSpan* spans;
  const T* packed;  // [rows × (heads + 2 kv_heads) × kD]
  const T* keys;    // key head 0 of row 0, among `key_vectors` vectors of kD to a row; values follow all keys
  int64_t key_vectors;
  const T* dout;    // [rows × heads × kD]
  int64_t heads, kv_heads, head_dim, window;
  float scale;
  float* lse;          // [rows × heads], of scores in units of ln 2
  const float* delta;  // [rows × heads]: dout · out
  float* dqkv;
  __device__ int64_t vectors() const { return heads + 2 * kv_heads; }
  __device__ int group() const { return int(heads / kv_heads); }
  __device__ bool sees(int64_t query, int64_t key) const { return key <= query && (window == 0 || query - key < window); }
};

// Copies n lines of kD numbers into a tile; from(line) is where one begins, null: zeros.
template <class T, int kD, int lines, class From>
__device__ inline void copy_lines(T* tile, const T* readable, From&& from) {
  constexpr int kLine = kD / kChunk<T>;
#pragma unroll 4
  for (int c = int(threadIdx.x); c < lines * kLine; c += kAttentionThreads) {
    const int line = c / kLine, at = c % kLine * kChunk<T>;
    const T* begin = from(line);
    copy_async(tile + line * (kD + kChunk<T>) + at, begin ? begin + at : readable, begin != nullptr);
  }
}

// Keys and values of a head at rows[0 … kN), -1: zeros, into two tiles.
template <class T, int kD, int kN>
__device__ inline void copy_keys(const Attention<T>& c, T* keys, T* values, const int64_t* rows, int64_t head) {
  const T* of_head = c.keys + head * kD;
  copy_lines<T, kD, kN>(keys, c.packed, [&](int line) { return rows[line] < 0 ? nullptr : of_head + rows[line] * c.key_vectors * kD; });
  copy_lines<T, kD, kN>(values, c.packed, [&](int line) { return rows[line] < 0 ? nullptr : of_head + (rows[line] * c.key_vectors + c.kv_heads) * kD; });
}

// Lines [first, end) of a node's rows · group, of the query heads that read key head `head`, into a tile of n lines. `from` holds
// `vectors` to a row, the query heads first.
template <class T, int kD, int n>
__device__ inline void copy_queries(const Attention<T>& c, T* tile, const T* from, int64_t vectors, const device::PlanNode& node, int64_t first, int64_t end, int64_t head) {
  const int group = c.group();
  copy_lines<T, kD, n>(tile, c.packed, [&](int line) -> const T* {
    const int64_t e = first + line;
    return e < end ? from + ((node.row + e / group) * vectors + head * group + e % group) * kD : nullptr;
  });
}

// The rows of keys at positions [first, first + n) of a node's path, -1 beyond its end.
__device__ inline void find_keys(int64_t* rows, int n, const device::PlanNode& node, const device::PlanSpan* spans, int64_t first) {
  for (int i = int(threadIdx.x); i < n; i += kAttentionThreads) {
    int64_t left = first + i, row = -1;
    for (int64_t s = 0; s < node.spans && row < 0; ++s) {
      const device::PlanSpan span = spans[node.first_span + s];
      if (left < span.rows) row = span.row + left;
      left -= span.rows;
    }
    rows[i] = row;
  }
}

// out += p b, p [64 × kN] where a product of 4 × 1 warps left it, b [kN × kD] lines of k.
template <class T, int kN, int kD>
__device__ inline void multiply_held(TileProduct<T, 64, kD, kN, false, true, 4, 1>& out, const float (&p)[1][kN / 8][4], const T* b) {
  using Out = TileProduct<T, 64, kD, kN, false, true, 4, 1>;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int k = 0; k < kN / 16; ++k) {
      const uint32_t a[4] = {pack_bf16(p[0][2 * k][0], p[0][2 * k][1]), pack_bf16(p[0][2 * k][2], p[0][2 * k][3]), pack_bf16(p[0][2 * k + 1][0], p[0][2 * k + 1][1]),
                             pack_bf16(p[0][2 * k + 1][2], p[0][2 * k + 1][3])};
#pragma unroll
      for (int j = 0; j < kD / 8; j += 2) {
        uint32_t fb[4];
        load_b<typename Out::B, true>(fb, b, 8 * j, 16 * k);
        mma_bf16(out.sums[0][j], a, {fb[0], fb[1]});
        mma_bf16(out.sums[0][j + 1], a, {fb[2], fb[3]});
      }
    }
  } else {  // the four lanes that hold a row pass its numbers round
    const int lane = int(threadIdx.x) % kWarp, column = lane % 4 * 2;
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      const int from = lane / 4 * 4 + k % 8 / 2;
      const float upper = __shfl_sync(kAllLanes, p[0][k / 8][k % 2], from), lower = __shfl_sync(kAllLanes, p[0][k / 8][2 + k % 2], from);
#pragma unroll
      for (int j = 0; j < kD / 8; ++j)
#pragma unroll
        for (int f = 0; f < 2; ++f) {
          const float right = b[k * Out::B::kStride + 8 * j + column + f];
          out.sums[0][j][f] += upper * right;
          out.sums[0][j][2 + f] += lower * right;
        }
    }
  }
}

// ---- host (cuda_tiles.cu)

// Tiles of a plan for `group` query heads to a key head, most work first, of keys too where `keys`; made at the first call.
struct AttentionTiles : Plan::Schedule {
  AttentionTiles(Context& context, const Plan& plan, int64_t group, bool keys);
  ~AttentionTiles() override;
  Context* context;
  void* memory = nullptr;
  int64_t query_count = 0, key_count = 0;
  const QueryTile* query_tiles = nullptr;
  const KeyTile* key_tiles = nullptr;
  const int32_t* seers = nullptr;
};
const AttentionTiles& attention_tiles(Context& context, const Plan& plan, int64_t group, bool keys);

// Throws where the kernels cannot do this call, or the device has no shared memory for it (99 KiB a block hold everything but
// float32 gradients of heads of more than 64 numbers).
void check_attention(const device::AttentionCall& call);
void check_shared(Context& context, size_t bytes);

// What both passes of a call know; qkv is packed into kSlotA.
template <class T, int kD>
Attention<T> prepare_attention(Context& context, const device::AttentionCall& call, const AttentionTiles& tiles);

}  // namespace pluralign::cuda
