#include "fused.h"

#include "ops/gemm/bf16.h"

namespace pluralign {
namespace {

constexpr int64_t kMostRows = 384;  // of a task: their logits and hidden rows share a second-level cache

// Rows [r0, r1) of the head on one thread.
struct Rows {
  Context& context;
  const Head& head;
  const bf16* hidden;  // panels
  int64_t r0, r1;
  int thread;

  int64_t rows() const { return r1 - r0; }
  Buffer& slot(int i) const { return context.local[size_t(thread)].slot[i]; }
  const void* weight_rows(int64_t v0) const { return static_cast<const char*>(head.weight) + v0 * head.width * int64_t(dtype_size(head.weight_type)); }

  // Panels of weightᵀ for vocabulary entries [v0, v0 + n).
  const bf16* weights(int64_t v0, int64_t n) const {
    if (head.packed) return static_cast<const bf16*>(head.packed->panels.data()) + v0 / kBf16Panel * bf16_panel(head.width);
    bf16* panels = slot(3).as<bf16>(bf16_panels(kHeadChunk, head.width));
    context.kernels.pack_bf16[1](panels, weight_rows(v0), head.weight_type, n, head.width, head.width, 1, 1.f);
    return panels;
  }

  void multiply(const bf16* a, const bf16* b, int64_t k, int64_t n, float* c, int64_t ldc, float alpha, bool accumulate) const {
    const int64_t panel = bf16_panel(k);
    const Bf16Block::Term term{a, b, panel, panel, k, 0, rows()};
    context.kernels.multiply_bf16({rows(), n, &term, 1, c, DType::f32, ldc, alpha, nullptr, accumulate, slot(1).as<float>((rows() + kBf16Rows) * 32)});
  }

  float* logits(int64_t v0, int64_t n) const {
    float* out = slot(4).as<float>(rows() * kHeadChunk);
    multiply(hidden + r0 / kBf16Panel * bf16_panel(head.width), weights(v0, n), head.width, n, out, n, head.scale, false);
    return out;
  }

  // Σ_v e_v W_v is carried along with Σ_v e_v, both rescaled where the maximum rises: the gradient of a row is its target's
  // weight less the mean of all under p, whatever factor comes back to it.
  void logps(float* logps, Partition* partition, float* squares, float* slopes) const {
    HeadSums* sums = slot(5).as<HeadSums>(rows());
    std::fill(sums, sums + rows(), HeadSums{});
    float* means = slopes ? slopes + r0 * head.width : nullptr;
    if (means) std::fill_n(means, rows() * head.width, 0.f);
    for (int64_t v0 = 0; v0 < head.vocabulary; v0 += kHeadChunk) {
      const int64_t n = std::min(kHeadChunk, head.vocabulary - v0);
      const float* x = logits(v0, n);
      bf16* left = means ? panels_of_logits() : nullptr;
      for (int64_t i = 0; i < rows(); ++i) {
        HeadSums& s = sums[i];
        const int64_t target = head.targets[r0 + i] - v0;
        if (target >= 0 && target < n) s.target = x[i * n + target];
        const float before = s.top;
        context.kernels.weigh_bf16(x + i * n, n, &s.top, &s.sum, &s.squares, left ? left + i / kBf16Panel * bf16_panel(n) + i % kBf16Panel * kBf16K : nullptr);
        if (means && v0 > 0 && s.top > before) scale_row(means + i * head.width, std::exp(before - s.top));
      }
      if (means) add_weights(left, v0, n, means);
    }
    for (int64_t i = 0; i < rows(); ++i) {
      sums[i].finish(logps[r0 + i], partition[r0 + i], squares ? &squares[r0 + i] : nullptr);
      if (means) slope(means + i * head.width, head.targets[r0 + i], float(head.scale / sums[i].sum));
    }
  }

  void scale_row(float* row, float factor) const {
    for (int64_t c = 0; c < head.width; ++c) row[c] *= factor;
  }

  bf16* panels_of_logits() const { return slot(6).as<bf16>(bf16_panels(rows(), kHeadChunk)); }

  // to [rows × width] += x [rows × n] · weight[v0 …], x in panels
  void add_weights(const bf16* left, int64_t v0, int64_t n, float* to) const {
    const int64_t width = head.width;
    bf16* turned = slot(7).as<bf16>(bf16_panels(width, kHeadChunk));
    if (head.packed) context.kernels.turn_bf16(turned, weights(v0, n), n, width, 0, (width + kBf16Panel - 1) / kBf16Panel);
    else context.kernels.pack_bf16[1](turned, weight_rows(v0), head.weight_type, width, n, 1, width, 1.f);
    multiply(left, turned, n, width, to, width, 1.f, true);
  }

  // row = scale · weight[target] - factor · row
  void slope(float* row, int64_t target, float factor) const {
    const bf16* weight = static_cast<const bf16*>(head.packed->panels.data()) + target / kBf16Panel * bf16_panel(head.width) + target % kBf16Panel * 2;
    for (int64_t c = 0; c < head.width; ++c) row[c] = head.scale * to_float(weight[c / 2 * 2 * kBf16Panel + c % 2]) - factor * row[c];
  }

  void backward(const Partition* partition, const float* dlogps, float* dhidden) const {
    for (int64_t v0 = 0; v0 < head.vocabulary; v0 += kHeadChunk) {
      const int64_t n = std::min(kHeadChunk, head.vocabulary - v0);
      float* x = logits(v0, n);
      for (int64_t i = 0; i < rows(); ++i) {
        const int64_t target = head.targets[r0 + i] - v0;
        const Partition& p = partition[r0 + i];
        const float d = dlogps[r0 + i] * head.scale;
        context.kernels.head_gradient_row(x + i * n, n, p.maximum, float(-double(d) / p.sum));
        if (target >= 0 && target < n) x[i * n + target] += d;
      }
      bf16* left = panels_of_logits();
      context.kernels.pack_bf16[0](left, x, DType::f32, rows(), n, n, 1, 1.f);
      add_weights(left, v0, n, dhidden + r0 * head.width);
    }
  }
};

template <class Body>
void on_rows(Context& context, const Head& h, Body&& body) {
  if (h.rows <= 0) return;
  bf16* hidden = context.packed_a.as<bf16>(bf16_panels(h.rows, h.width));
  const Bf16Packing packing{hidden, Side::left, h.hidden, h.rows, h.width};
  pack_bf16(context, &packing, 1);
  const int64_t parts = std::max<int64_t>(context.pool.size(), (h.rows + kMostRows - 1) / kMostRows);
  const int64_t each = ((h.rows + parts - 1) / parts + kBf16Rows - 1) / kBf16Rows * kBf16Rows;
  context.pool.run((h.rows + each - 1) / each, [&](int64_t i, int thread) {
    body(Rows{context, h, hidden, i * each, std::min(h.rows, (i + 1) * each), thread});
  });
}

}  // namespace

void fused_head_logps(Context& context, const Head& h, float* logps, Partition* partition, float* squares, float* slopes) {
  on_rows(context, h, [&](const Rows& rows) { rows.logps(logps, partition, squares, slopes); });
}

void fused_head_backward(Context& context, const Head& h, const Partition* partition, const float* dlogps, float* dhidden) {
  on_rows(context, h, [&](const Rows& rows) { rows.backward(partition, dlogps, dhidden); });
}

}  // namespace pluralign
