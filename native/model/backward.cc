#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "decoder.h"
#include "ops/norm/norm.h"
#include "ops/swiglu/swiglu.h"

namespace pluralign {

void Decoder::norm_backward(const Pass& pass, const Weight& weight, float* dx, const float* dy, const float* x, const float* rstd, int64_t rows, bool accumulate) {
  if (weight.grad) rmsnorm_backward_weight(pass.context, weight.grad, dy, x, rstd, rows, config_.hidden);
  rmsnorm_backward(pass.context, dx, dy, x, rstd, weight.floats(), rows, config_.hidden, accumulate);
}

// Given dy: dx (where not null) becomes the gradient of x, and every trained weight and factor gets its own.
void Decoder::linears_backward(const Pass& pass, int64_t layer, int first, int last, const void* x, const Saved& saved, const float* dy, int64_t ldy, float* dx) {
  const LinearCall c = call(pass, layer, first, last, x, saved);
  for (int t = first; t <= last; dy += parts_[t++].out) {
    parts_[t].dy = dy;
    parts_[t].ldy = ldy;
    const Linear& l = pass.network.layers[size_t(layer)].linear[t];
    if (l.weight.grad) {
      Gemm g{parts_[t].out, c.in, c.rows, transposed(dy, DType::f32, ldy), matrix(x, type(), c.in), l.weight.grad, DType::f32, c.in};
      g.accumulate = true;
      g.bfloat16 = storage_ == kBf16;
      gemm(pass.context, g);
    }
    if (l.bias.grad)
      for (int64_t r = 0; r < c.rows; ++r) pass.context.kernels.axpy(l.bias.grad, dy + r * ldy, 1.f, parts_[t].out);
  }
  linear_backward(pass.context, c, dx);
}

// dx holds the gradient of the layer's output and becomes that of its input (left as it is where nobody below trains).
void Decoder::layer_backward(const Pass& pass, int64_t layer, Saved& saved, float* dx, bool to_input) {
  const LayerWeights& w = pass.network.layers[size_t(layer)];
  const int64_t rows = pass.plan.rows, d = config_.hidden, ff = config_.intermediate, qkv = config_.qkv_width();
  const float eps = float(config_.eps);
  const float *input = static_cast<const float*>(saved_[size_t(layer)].input.data()), *middle = static_cast<const float*>(saved.middle.data());
  float *input_rstd = static_cast<float*>(saved.input_rstd.data()), *middle_rstd = static_cast<float*>(saved.middle_rstd.data());
  void* normed = normed_.get(size_t(rows * d) * element());
  float* dnormed = dnormed_.as<float>(rows * d);

  // Feed-forward: output = middle + down(silu(gate) · up)
  void* act = act_.get(size_t(rows * ff) * element());
  swiglu(pass.context, storage_, act, saved.gate_up.data(), rows, ff);
  float* dact = dact_.as<float>(rows * ff);
  linears_backward(pass, layer, kDown, kDown, act, saved, dx, d, dact);
  float* dgate_up = dgate_up_.as<float>(rows * 2 * ff);
  swiglu_backward(pass.context, storage_, dgate_up, dact, saved.gate_up.data(), rows, ff);
  rmsnorm(pass.context, storage_, normed, middle_rstd, middle, w.post_norm.floats(), rows, d, eps);
  linears_backward(pass, layer, kGate, kUp, normed, saved, dgate_up, 2 * ff, dnormed);
  norm_backward(pass, w.post_norm, dx, dnormed, middle, middle_rstd, rows, true);

  // Attention: middle = input + o(attention(q, k, v))
  float* dattended = dattended_.as<float>(rows * config_.q_width());
  linears_backward(pass, layer, kO, kO, saved.attended.data(), saved, dx, d, dattended);
  float* rotated = rotated_.as<float>(rows * qkv);
  rotate(pass, layer, saved, rotated);
  float* drotated = drotated_.as<float>(rows * qkv);
  std::fill(drotated, drotated + rows * qkv, 0.f);
  attention_backward(pass.context, attention_shape(), segments(pass, layer, rotated, drotated), pass.plan.trees, rotated, qkv, dattended, drotated);
  rope_backward(pass.context, rope_shape(w), rope_, storage_, drotated, saved.qkv.data(), pass.plan.positions.data(), rows, w.q_norm.grad, w.k_norm.grad);
  rmsnorm(pass.context, storage_, normed, input_rstd, input, w.input_norm.floats(), rows, d, eps);
  const bool below = to_input || w.input_norm.grad;
  linears_backward(pass, layer, kQ, kV, normed, saved, drotated, qkv, below ? dnormed : nullptr);
  if (below) norm_backward(pass, w.input_norm, dx, dnormed, input, input_rstd, rows, true);
}

void Decoder::backward(const Pass& pass, const float* dhidden) {
  const Plan& plan = pass.plan;
  const int64_t rows = plan.rows, d = config_.hidden;
  if (rows == 0) return;  // forward() was not called then
  if (!kept_) throw_error("BAD_ARGUMENT", "backward needs a score with keep before it");
  kept_ = false;
  float* dx = dx_.as<float>(rows * d);
  std::fill(dx, dx + rows * d, 0.f);
  float* dread = dread_.as<float>(plan.readouts * d);
  norm_backward(pass, pass.network.final_norm, dread, dhidden, static_cast<const float*>(read_.data()), static_cast<const float*>(read_rstd_.data()), plan.readouts, false);
  for (int64_t i = 0; i < plan.readouts; ++i) pass.context.kernels.axpy(dx + plan.read_rows[size_t(i)] * d, dread + i * d, 1.f, d);

  const int64_t lowest = pass.network.trains_base ? 0 : pass.bank ? pass.bank->lowest_layer() : config_.layers;
  for (int64_t l = config_.layers - 1; l >= lowest; --l) {
    pass.cancel.check();
    Saved* saved = &saved_[size_t(l)];
    if (checkpoint_) {
      float* x = x_.as<float>(rows * d);
      std::copy_n(static_cast<const float*>(saved->input.data()), rows * d, x);
      layer_forward(pass, l, scratch_, x);
      saved = &scratch_;
    }
    layer_backward(pass, l, *saved, dx, l > lowest || pass.network.trains_base);
  }
  if (float* grad = pass.network.embedding.grad)
    pass.context.pool.ranges(d, 32, [&](int64_t c0, int64_t c1, int) {
      for (int64_t r = 0; r < rows; ++r) pass.context.kernels.axpy(grad + int64_t(plan.tokens[size_t(r)]) * d + c0, dx + r * d + c0, 1.f, c1 - c0);
    });
}

}  // namespace pluralign
