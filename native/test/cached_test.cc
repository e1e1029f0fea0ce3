// Attention over cached panels: the bits of attention over the whole sequence, however the sequence is cut into steps.
#include <cstring>

#include "model/kv_cache.h"
#include "ops/attention/bf16.h"
#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

ModelConfig config_of(const AttentionShape& s) {
  ModelConfig c;
  c.layers = 2;
  c.heads = s.heads;
  c.kv_heads = s.kv_heads;
  c.head_dim = s.head_dim;
  return c;
}

std::vector<float> widened(const std::vector<char>& bytes) {
  std::vector<float> out(bytes.size() / 2);
  for (size_t i = 0; i < out.size(); ++i) {
    bf16 v;
    std::memcpy(&v, &bytes[2 * i], 2);
    out[i] = to_float(v);
  }
  return out;
}

}  // namespace

TEST(attention_cached_is_attention_to_the_bit) {
  Random random(3);
  for (const AttentionShape& shape : {AttentionShape{4, 2, 8, 0.35f, 0}, AttentionShape{6, 2, 12, 0.3f, 17}, AttentionShape{4, 1, 64, 0.125f, 0},
                                      AttentionShape{3, 3, 80, 0.1f, 1}, AttentionShape{8, 4, 16, 0.25f, 40}, AttentionShape{40, 1, 32, 0.2f, 33},
                                      AttentionShape{66, 2, 24, 0.2f, 5}, AttentionShape{12, 1, 16, 0.25f, 7}, AttentionShape{17, 1, 4, 0.5f, 0}, AttentionShape{5, 1, 10, 0.3f, 0}})
    on_every_machine([&](Context& context) {
      const int64_t q = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim, stride = q + 2 * kv, length = 131;
      const std::vector<float> x = random.normals(length * stride);
      for (int storage : {kF32, kBf16}) {
        const size_t size = storage == kF32 ? 4 : 2;
        std::vector<char> expected(size_t(length * q) * size), out(expected.size());
        const AttentionSegment whole{0, length, 0, {{x.data() + q, x.data() + q + kv, stride, length, nullptr, nullptr}}};
        attention(context, shape, {whole}, x.data(), stride, storage, expected.data());
        KvCache cache(config_of(shape), context.kernels, storage);
        const auto attend = [&](const std::vector<CachedSequence>& sequences, const float* from, void* to) {
          attention_cached(context, {shape, from, stride, q, q + kv, storage, to}, sequences);
        };
        CHECK(cache.bytes(length) >= 2 * length * 2 * kv * (attends_in_bf16(context, storage) ? 2 : 4) && cache.bytes_held() == 0);
        const int other = cache.open(5), slot = cache.open(length), copied = cache.open(length + 40);
        CHECK(cache.bytes_held() == cache.bytes(5) + cache.bytes(length) + cache.bytes(length + 40));
        // Memory as it may be found: NaN in either type.
        for (const auto& [in, tokens] : {std::pair{slot, length}, {copied, length + 40}}) std::memset(cache.sequence(1, in, 0, 0, 0).keys, 0xff, size_t(cache.bytes(tokens) / 2));
        int64_t at = 0;
        for (int64_t rows : {int64_t(40), int64_t(1), int64_t(1), int64_t(70), int64_t(1), length}) {
          rows = std::min(rows, length - at);
          // The rows stand behind another sequence's in the pass; layer 1 of the cache.
          std::vector<float> pass = random.normals(2 * stride);
          pass.insert(pass.end(), x.begin() + at * stride, x.begin() + (at + rows) * stride);
          std::vector<char> part(size_t((rows + 2) * q) * size);
          attend({cache.sequence(1, other, 0, 2, 0), cache.sequence(1, slot, 2, rows, at)}, pass.data(), part.data());
          std::copy(part.begin() + 2 * q * int64_t(size), part.end(), out.begin() + at * q * int64_t(size));
          at += rows;
        }
        // Kernels for narrow heads add up in another order.
        if (storage == kBf16 && context.kernels.attend_narrow && shape.head_dim <= kNarrow && shape.heads / shape.kv_heads <= kNarrow)
          CHECK_CLOSE(name_of(context), widened(out), widened(expected), 0.01, 0.01);
        else CHECK(out == expected);
        // A copy of the first positions goes on as the original did.
        cache.copy(slot, copied, 100);
        std::vector<char> rest(size_t((length - 100) * q) * size);
        attend({cache.sequence(1, copied, 0, length - 100, 100)}, x.data() + 100 * stride, rest.data());
        CHECK(std::equal(rest.begin(), rest.end(), out.begin() + 100 * q * int64_t(size)));
        cache.close(slot);
        CHECK(cache.open(3) == slot);
        attend({}, nullptr, nullptr);
      }
    });
}
