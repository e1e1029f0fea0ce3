#include "bf16.h"
#include "tile.h"

namespace pluralign {
using namespace attention_detail;
namespace {

struct Pass {
  Context& context;
  const AttentionShape& shape;
  const float* q;
  int64_t stride;
  const float* dout;
  float* dq;

  void segment(const AttentionSegment& s, int64_t head, int thread) const {
    const Kernels& kr = context.kernels;
    const int64_t width = shape.head_dim, group = shape.heads / shape.kv_heads, mr = kr.mr, nr = kr.nr;
    const Tiling tiling(shape, kr);
    const int64_t length = s.prefix + s.rows, ld = round_up(length, std::max(nr, kPad)), most = tiling.queries * group;
    auto& slot = context.local[size_t(thread)].slot;
    float* keys = slot[0].as<float>(length * width);
    float* values = slot[1].as<float>(length * width);
    gather(s, head, width, keys, values);
    // Keys and values as columns (for scores and their gradient), and keys as rows (for dq).
    float* key_columns = slot[2].as<float>(round_up(length, nr) * width);
    float* value_columns = slot[3].as<float>(round_up(length, nr) * width);
    float* key_rows = slot[4].as<float>(round_up(width, nr) * length);
    kr.pack_b(key_columns, keys, DType::f32, length, width, width, 1);
    kr.pack_b(value_columns, values, DType::f32, length, width, width, 1);
    kr.pack_b(key_rows, keys, DType::f32, width, length, 1, width);
    float* q_rows = slot[5].as<float>(most * width);
    float* d_rows = slot[6].as<float>(most * width);
    float* left = slot[7].as<float>(std::max(round_up(most, mr) * std::max(width, ld), round_up(ld, mr) * most));
    float* right = slot[8].as<float>(round_up(width, nr) * most);
    float* scores = slot[9].as<float>(most * ld);
    float* grads = slot[10].as<float>(most * ld);
    float* dkeys = slot[11].as<float>(2 * length * width);
    float* dvalues = dkeys + length * width;
    std::fill(dkeys, dkeys + 2 * length * width, 0.f);

    for (int64_t begin = 0; begin < s.rows; begin += tiling.queries) {
      const Tile t = tiling.at(s, begin);
      const int64_t m = (t.end - t.begin) * group, n = t.last - t.first;
      gather_rows(q_rows, q, stride, s.row, head * group, group, width, t);
      gather_rows(d_rows, dout, shape.heads * width, s.row, head * group, group, width, t);
      kr.pack_a(left, q_rows, DType::f32, m, width, width, 1);
      kr.panels(m, n, width, left, mr * width, key_columns + t.first * width, nr * width, scores, DType::f32, ld, 1.f, nullptr, false);
      kr.pack_a(left, d_rows, DType::f32, m, width, width, 1);
      kr.panels(m, n, width, left, mr * width, value_columns + t.first * width, nr * width, grads, DType::f32, ld, 1.f, nullptr, false);
      for (int64_t i = 0; i < m; ++i) {
        const int64_t position = s.prefix + t.begin + i / group, lo = tiling.low(position) - t.first, hi = position + 1 - t.first;
        kr.softmax_row(scores + i * ld, lo, hi, n, shape.scale);
        kr.softmax_row_backward(scores + i * ld, grads + i * ld, lo, hi, n, shape.scale);
      }
      // dvalues += pᵀ dout, dkeys += dsᵀ q, dq = ds keys
      kr.pack_a(left, scores, DType::f32, n, m, 1, ld);
      kr.pack_b(right, d_rows, DType::f32, width, m, 1, width);
      kr.panels(n, width, m, left, mr * m, right, nr * m, dvalues + t.first * width, DType::f32, width, 1.f, nullptr, true);
      kr.pack_a(left, grads, DType::f32, n, m, 1, ld);
      kr.pack_b(right, q_rows, DType::f32, width, m, 1, width);
      kr.panels(n, width, m, left, mr * m, right, nr * m, dkeys + t.first * width, DType::f32, width, 1.f, nullptr, true);
      kr.pack_a(left, grads, DType::f32, m, n, ld, 1);
      kr.panels(m, width, n, left, mr * n, key_rows + t.first * nr, nr * length, q_rows, DType::f32, width, 1.f, nullptr, false);
      for (int64_t i = 0; i < t.end - t.begin; ++i)
        std::memcpy(dq + (s.row + t.begin + i) * stride + head * group * width, q_rows + i * group * width, size_t(group * width) * 4);
    }
    const float *dk = dkeys, *dv = dvalues;
    for (const KeySpan& span : s.path)
      for (int64_t p = 0; p < span.count; ++p, dk += width, dv += width) {
        kr.axpy(span.dk + p * span.stride + head * width, dk, 1.f, width);
        kr.axpy(span.dv + p * span.stride + head * width, dv, 1.f, width);
      }
  }
};

}  // namespace

void attention_backward(Context& context, const AttentionShape& shape, const std::vector<AttentionSegment>& segments,
                        const std::vector<std::vector<int>>& trees, const float* q, int64_t stride, int storage, const float* dout, float* dq) {
  if (attends_in_bf16(context, storage)) return attention_bf16_backward(context, shape, segments, trees, q, stride, dout, dq);
  const Pass pass{context, shape, q, stride, dout, dq};
  context.pool.run(int64_t(trees.size()) * shape.kv_heads, [&](int64_t task, int thread) {
    for (int s : trees[size_t(task / shape.kv_heads)]) pass.segment(segments[size_t(s)], task % shape.kv_heads, thread);
  });
}

}  // namespace pluralign
