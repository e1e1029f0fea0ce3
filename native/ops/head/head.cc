#include "head.h"

#include "fused.h"

#include <cmath>
#include <limits>

namespace pluralign {
namespace {

const void* weight_rows(const Head& h, int64_t row) {
  return static_cast<const char*>(h.weight) + row * h.width * int64_t(dtype_size(h.weight_type));
}

// logits [rows × n] of vocabulary entries [v0, v0 + n).
void logits_of(Context& context, const Head& h, int64_t r0, int64_t rows, int64_t v0, int64_t n, float* logits) {
  Gemm g{rows, n, h.width, h.hidden, transposed(weight_rows(h, v0), h.weight_type, h.width), logits, DType::f32, n};
  g.packed = h.packed;
  g.packed_column = v0;
  g.bfloat16 = h.hidden.type == DType::bf16;
  g.a.data = static_cast<const char*>(h.hidden.data) + r0 * h.hidden.row_stride * int64_t(dtype_size(h.hidden.type));
  gemm(context, g);
  if (h.scale == 1) return;
  for (int64_t i = 0; i < rows * n; ++i) logits[i] *= h.scale;
}

}  // namespace

void head_logps(Context& context, const Head& h, float* logps, Partition* partition, float* squares, float* slopes) {
  if (fuses(context, h)) return fused_head_logps(context, h, logps, partition, squares, slopes);
  const bool rounded = context.kernels.weigh_bf16 && h.hidden.type == DType::bf16;  // the same numbers as all rows at once
  HeadSums* running = context.shared[0].as<HeadSums>(std::min(h.rows, kHeadRows));
  for (int64_t r0 = 0; r0 < h.rows; r0 += kHeadRows) {
    const int64_t rows = std::min(kHeadRows, h.rows - r0);
    std::fill(running, running + rows, HeadSums{});
    for (int64_t v0 = 0; v0 < h.vocabulary; v0 += kHeadChunk) {
      const int64_t n = std::min(kHeadChunk, h.vocabulary - v0);
      float* logits = context.head.as<float>(rows * n);
      logits_of(context, h, r0, rows, v0, n, logits);
      context.pool.ranges(rows, 8, [&](int64_t i, int64_t end, int) {
        for (; i < end; ++i) {
          HeadSums& s = running[i];
          const int64_t target = h.targets[r0 + i] - v0;
          if (target >= 0 && target < n) s.target = logits[i * n + target];
          if (rounded) context.kernels.weigh_bf16(logits + i * n, n, &s.top, &s.sum, &s.squares, nullptr);
          else context.kernels.logsumexp_row(logits + i * n, n, &s.top, &s.sum, &s.squares);
        }
      });
    }
    for (int64_t i = 0; i < rows; ++i) {
      running[i].finish(logps[r0 + i], partition[r0 + i], squares ? &squares[r0 + i] : nullptr);
    }
  }
}

void head_backward(Context& context, const Head& h, const Partition* partition, const float* dlogps, float* dhidden, float* dweight) {
  if (!dweight && fuses(context, h)) return fused_head_backward(context, h, partition, dlogps, dhidden);
  for (int64_t r0 = 0; r0 < h.rows; r0 += kHeadRows) {
    const int64_t rows = std::min(kHeadRows, h.rows - r0);
    for (int64_t v0 = 0; v0 < h.vocabulary; v0 += kHeadChunk) {
      const int64_t n = std::min(kHeadChunk, h.vocabulary - v0);
      float* logits = context.head.as<float>(rows * n);
      logits_of(context, h, r0, rows, v0, n, logits);
      context.pool.ranges(rows, 8, [&](int64_t i, int64_t end, int) {
        for (; i < end; ++i) {
          const int64_t target = h.targets[r0 + i] - v0;
          const Partition& p = partition[r0 + i];
          const float d = dlogps[r0 + i] * h.scale;
          context.kernels.head_gradient_row(logits + i * n, n, p.maximum, float(-double(d) / p.sum));
          if (target >= 0 && target < n) logits[i * n + target] += d;
        }
      });
      Gemm to_hidden{rows, h.width, n, matrix(logits, DType::f32, n), matrix(weight_rows(h, v0), h.weight_type, h.width),
                     dhidden + r0 * h.width, DType::f32, h.width};
      to_hidden.accumulate = true;
      to_hidden.bfloat16 = h.hidden.type == DType::bf16;
      gemm(context, to_hidden);
      if (dweight) {
        Gemm to_weight{n, h.width, rows, transposed(logits, DType::f32, n), h.hidden, dweight + v0 * h.width, DType::f32, h.width};
        to_weight.b.data = static_cast<const char*>(h.hidden.data) + r0 * h.hidden.row_stride * int64_t(dtype_size(h.hidden.type));
        to_weight.accumulate = true;
        to_weight.bfloat16 = h.hidden.type == DType::bf16;
        gemm(context, to_weight);
      }
    }
  }
}

}  // namespace pluralign
