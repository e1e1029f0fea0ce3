#include "bf16.h"
#include "tile.h"

namespace pluralign {
using namespace attention_detail;

void attention(Context& context, const AttentionShape& shape, const std::vector<AttentionSegment>& segments, const float* q,
               int64_t stride, int storage, void* out) {
  if (attends_in_bf16(context, storage)) return attention_bf16(context, shape, segments, q, stride, static_cast<bf16*>(out));
  const Kernels& kr = context.kernels;
  const int64_t width = shape.head_dim, group = shape.heads / shape.kv_heads, mr = kr.mr, nr = kr.nr;
  const Tiling tiling(shape, kr);
  context.pool.run(int64_t(segments.size()) * shape.kv_heads, [&](int64_t task, int thread) {
    const AttentionSegment& s = segments[size_t(task / shape.kv_heads)];
    const int64_t head = task % shape.kv_heads, length = s.prefix + s.rows, ld = round_up(length, std::max(nr, kPad));
    const int64_t most = tiling.queries * group;
    auto& slot = context.local[size_t(thread)].slot;
    float* keys = slot[0].as<float>(length * width);
    float* values = slot[1].as<float>(length * width);
    gather(s, head, width, keys, values);
    float* key_panels = slot[2].as<float>(round_up(length, nr) * width);
    float* value_panels = slot[3].as<float>(round_up(width, nr) * length);
    kr.pack_b(key_panels, keys, DType::f32, length, width, width, 1);
    kr.pack_b(value_panels, values, DType::f32, width, length, 1, width);
    float* rows = slot[4].as<float>(most * width);
    float* left = slot[5].as<float>(round_up(most, mr) * std::max(width, ld));
    float* scores = slot[6].as<float>(most * ld);

    for (int64_t begin = 0; begin < s.rows; begin += tiling.queries) {
      const Tile t = tiling.at(s, begin);
      const int64_t m = (t.end - t.begin) * group, n = t.last - t.first;
      gather_rows(rows, q, stride, s.row, head * group, group, width, t);
      kr.pack_a(left, rows, DType::f32, m, width, width, 1);
      kr.panels(m, n, width, left, mr * width, key_panels + t.first * width, nr * width, scores, DType::f32, ld, 1.f, nullptr, false);
      for (int64_t i = 0; i < m; ++i) {
        const int64_t position = s.prefix + t.begin + i / group;
        kr.softmax_row(scores + i * ld, tiling.low(position) - t.first, position + 1 - t.first, n, shape.scale);
      }
      kr.pack_a(left, scores, DType::f32, m, n, ld, 1);
      kr.panels(m, width, n, left, mr * n, value_panels + t.first * nr, nr * length, rows, DType::f32, width, 1.f, nullptr, false);
      for (int64_t i = 0; i < t.end - t.begin; ++i) {
        const int64_t at = ((s.row + t.begin + i) * shape.heads + head * group) * width;
        const float* from = rows + i * group * width;
        if (storage == kF32) std::memcpy(static_cast<float*>(out) + at, from, size_t(group * width) * 4);
        else kr.round_rows(static_cast<bf16*>(out) + at, 0, from, 0, 1, group * width, nullptr);
      }
    }
  });
}

}  // namespace pluralign
