// The schedule of attention on the GPU, and its operands as the kernels read them.
#include <algorithm>
#include <cstring>

#include "ops/attention/cuda.cuh"

namespace pluralign::cuda {
namespace {

// A thread takes 16 bytes of a head's vector.
template <class T, int kD>
__global__ void pack_kernel(T* to, const float* from, int64_t vectors, int64_t width) {
  constexpr int kLine = kD / kChunk<T>;
  const int64_t c = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, vector = c / kLine, at = c % kLine * kChunk<T>;
  if (vector >= vectors) return;
  float v[kChunk<T>];
  const float* begin = from + vector * width + at;
  load_floats(v, begin, width - at, width % 4 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0);
  *reinterpret_cast<uint4*>(to + vector * kD + at) = pack_chunk(v);
}

}  // namespace

AttentionTiles::AttentionTiles(Context& c, const Plan& plan, int64_t group, bool with_keys) : context(&c) {
  const device::PlanArrays& p = plan.host;
  std::vector<QueryTile> queries;
  std::vector<KeyTile> keys;
  std::vector<int64_t> query_cost, key_cost;
  std::map<int64_t, int32_t> node_at;  // by first row
  for (int64_t n = 0; n < p.nodes; ++n) node_at[p.node[n].row] = int32_t(n);
  std::vector<std::vector<int32_t>> seen_by(static_cast<size_t>(p.nodes));
  for (int64_t n = 0; with_keys && n < p.nodes; ++n)
    for (int64_t s = 0; s < p.node[n].spans; ++s) {
      const device::PlanSpan& span = p.span[p.node[n].first_span + s];
      const auto found = node_at.find(span.row);
      if (found == node_at.end() || p.node[found->second].rows != span.rows) throw Failure(device::Status::bad_argument, "attention: a span of a plan is no node");
      seen_by[size_t(found->second)].push_back(int32_t(n));
    }
  std::vector<int32_t> list;
  for (int64_t n = 0; n < p.nodes; ++n) {
    const device::PlanNode& node = p.node[n];
    const int64_t all = (p.standing ? 1 : node.rows) * group;  // a standing plan's nodes come to have rows
    for (int64_t e = 0; e < all; e += kTileQueries) {
      const int64_t count = std::min<int64_t>(kTileQueries, all - e);
      queries.push_back({int32_t(n), int32_t(e), int32_t(count)});
    }
    const int32_t seer = int32_t(list.size());
    const auto& seers_of = seen_by[size_t(n)];
    list.insert(list.end(), seers_of.begin(), seers_of.end());
    int64_t watchers = 0;
    for (int32_t m : seers_of) watchers += p.node[m].rows;
    for (int64_t i = 0; with_keys && i < node.rows; i += kTileKeys) {
      keys.push_back({int32_t(n), int32_t(i), int32_t(std::min<int64_t>(kTileKeys, node.rows - i)), seer, int32_t(seers_of.size())});
      key_cost.push_back(watchers - i);
    }
  }
  // Most work first; the order of tiles changes no result.
  const auto cost = [&](const QueryTile& t) { return p.node[t.node].prefix + t.first / group; };
  std::stable_sort(queries.begin(), queries.end(), [&](const QueryTile& a, const QueryTile& b) { return cost(a) > cost(b); });
  std::vector<size_t> order(keys.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key_cost[a] > key_cost[b]; });
  std::vector<KeyTile> sorted;
  for (size_t i : order) sorted.push_back(keys[i]);

  query_count = int64_t(queries.size());
  key_count = int64_t(sorted.size());
  const size_t query_bytes = (queries.size() * sizeof(QueryTile) + 15) / 16 * 16, key_bytes = (sorted.size() * sizeof(KeyTile) + 15) / 16 * 16;
  std::vector<char> bytes(query_bytes + key_bytes + list.size() * sizeof(int32_t));
  if (bytes.empty()) return;
  std::memcpy(bytes.data(), queries.data(), queries.size() * sizeof(QueryTile));
  std::memcpy(bytes.data() + query_bytes, sorted.data(), sorted.size() * sizeof(KeyTile));
  std::memcpy(bytes.data() + query_bytes + key_bytes, list.data(), list.size() * sizeof(int32_t));
  char* at = static_cast<char*>(memory = c.borrow(bytes.size(), "a plan's tiles"));
  c.upload(memory, bytes.data(), bytes.size());
  query_tiles = reinterpret_cast<const QueryTile*>(at);
  key_tiles = reinterpret_cast<const KeyTile*>(at + query_bytes);
  seers = reinterpret_cast<const int32_t*>(at + query_bytes + key_bytes);
}

AttentionTiles::~AttentionTiles() {
  if (memory) context->give_back(memory);
}

const AttentionTiles& attention_tiles(Context& context, const Plan& plan, int64_t group, bool keys) {
  auto& made = const_cast<Plan&>(plan).schedules[(keys ? "attention, keys " : "attention ") + std::to_string(group)];
  if (!made) made = std::make_unique<AttentionTiles>(context, plan, group, keys);
  return static_cast<const AttentionTiles&>(*made);
}

void check_attention(const device::AttentionCall& c) {
  if (c.kv_heads <= 0 || c.heads % c.kv_heads != 0) throw Failure(device::Status::bad_argument, "attention: query heads must be a multiple of key heads");
  if (c.head_dim > 128) throw Failure(device::Status::unsupported, "attention on cuda takes heads of up to 128 numbers; these have " + std::to_string(c.head_dim));
}

void check_shared(Context& context, size_t bytes) {
  if (bytes > context.most_shared)
    throw Failure(device::Status::unsupported, "attention of such heads in this dtype needs " + std::to_string(bytes) + " bytes of shared memory a block, cuda:" + std::to_string(context.ordinal) +
                                                   " has " + std::to_string(context.most_shared) + "; train in bfloat16");
}

template <class T, int kD>
Attention<T> prepare_attention(Context& context, const device::AttentionCall& call, const AttentionTiles& tiles) {
  const Plan& plan = *call.plan;
  const int64_t vectors = plan.host.rows * (call.heads + 2 * call.kv_heads);
  T* packed = context.scratch<T>(kSlotA, vectors * kD);
  PLURALIGN_LAUNCH((pack_kernel<T, kD>), blocks(ceil_div(vectors * (kD / kChunk<T>), 256)), 256, 0, context.stream, packed, call.qkv, vectors, call.head_dim);
  Attention<T> a{};
  a.query_tiles = tiles.query_tiles;
  a.key_tiles = tiles.key_tiles;
  a.seers = tiles.seers;
  a.nodes = plan.on_device.node;
  a.spans = plan.on_device.span;
  a.packed = packed;
  a.keys = packed + call.heads * kD;
  a.key_vectors = call.heads + 2 * call.kv_heads;
  a.heads = call.heads;
  a.kv_heads = call.kv_heads;
  a.head_dim = call.head_dim;
  a.window = call.window;
  a.scale = call.scale;
  a.lse = call.lse;
  return a;
}
template Attention<float> prepare_attention<float, 64>(Context&, const device::AttentionCall&, const AttentionTiles&);
template Attention<float> prepare_attention<float, 128>(Context&, const device::AttentionCall&, const AttentionTiles&);
template Attention<bf16> prepare_attention<bf16, 64>(Context&, const device::AttentionCall&, const AttentionTiles&);
template Attention<bf16> prepare_attention<bf16, 128>(Context&, const device::AttentionCall&, const AttentionTiles&);

}  // namespace pluralign::cuda
