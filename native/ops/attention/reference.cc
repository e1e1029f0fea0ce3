#include <cmath>
#include <limits>

#include "attention.h"

namespace pluralign {

void attention_reference(const AttentionShape& shape, const std::vector<AttentionSegment>& segments, const float* q, int64_t stride,
                         float* out) {
  const int64_t group = shape.heads / shape.kv_heads, width = shape.head_dim;
  for (const AttentionSegment& s : segments)
    for (int64_t i = 0; i < s.rows; ++i)
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int64_t row = s.row + i, position = s.prefix + i;
        const float* query = q + row * stride + h * width;
        std::vector<double> score, weight;
        std::vector<const float*> value;
        int64_t key = 0;
        for (const KeySpan& span : s.path)
          for (int64_t t = 0; t < span.count; ++t, ++key) {
            if (key > position || (shape.window > 0 && position - key >= shape.window)) continue;
            double dot = 0;
            for (int64_t c = 0; c < width; ++c) dot += double(query[c]) * span.k[t * span.stride + h / group * width + c];
            score.push_back(dot * shape.scale);
            value.push_back(span.v + t * span.stride + h / group * width);
          }
        double top = -std::numeric_limits<double>::infinity(), sum = 0;
        for (double x : score) top = std::max(top, x);
        for (double x : score) sum += std::exp(x - top);
        for (int64_t c = 0; c < width; ++c) {
          double total = 0;
          for (size_t j = 0; j < score.size(); ++j) total += std::exp(score[j] - top) / sum * value[j][c];
          out[(row * shape.heads + h) * width + c] = float(total);
        }
      }
}

}  // namespace pluralign
