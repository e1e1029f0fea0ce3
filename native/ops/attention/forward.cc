#include "bf16.h"
#include "tile.h"

namespace pluralign {
using namespace attention_detail;

void attention(Context& context, const AttentionShape& shape, const std::vector<AttentionSegment>& segments, const float* q,
               int64_t stride, int storage, void* out) {
  if (attends_in_bf16(context, storage)) return attention_bf16(context, shape, segments, q, stride, static_cast<bf16*>(out));
  const Kernels& kr = context.kernels;
  const int64_t width = shape.head_dim, nr = kr.nr;
  context.pool.run(int64_t(segments.size()) * shape.kv_heads, [&](int64_t task, int thread) {
    const AttentionSegment& s = segments[size_t(task / shape.kv_heads)];
    const int64_t head = task % shape.kv_heads, length = s.prefix + s.rows;
    auto& slot = context.local[size_t(thread)].slot;
    float* keys = slot[0].as<float>(length * width);
    float* values = slot[1].as<float>(length * width);
    gather(s, head, width, keys, values);
    float* key_panels = slot[2].as<float>(round_up(length, nr) * width);
    float* value_panels = slot[3].as<float>(round_up(width, nr) * length);
    kr.pack_b(key_panels, keys, DType::f32, length, width, width, 1);
    kr.pack_b(value_panels, values, DType::f32, width, length, 1, width);
    attend_tiles(context, {shape, s, head, key_panels, value_panels, nr * length, q, stride, storage, out}, thread, [] {});
  });
}

}  // namespace pluralign
