#include <algorithm>

#include "base/status.h"
#include "decoder.h"

namespace pluralign {

using device::Table;

void Decoder::norm_backward(const Pass& pass, const Weight& weight, float* dx, const float* dy, const float* x, const float* rstd, int64_t rows, bool accumulate) {
  pass.device.run(&Table::norm_backward, device::NormBackwardCall{rows, config_.hidden, dy, x, rstd, weight.floats(), dx, weight.grad, accumulate, 0});
}

// Given dy: dx (where not null) becomes the gradient of x, and every trained weight and factor gets its own.
void Decoder::linears_backward(const Pass& pass, int64_t layer, int first, int last, const void* x, const Saved& saved, const float* dy, int64_t ldy, float* dx) {
  device::LinearCall c = linear_call(pass, layer, first, last, x, saved, ldy);
  for (int i = 0; i < c.count; dy += c.part[i++].out) c.part[i].dy = dy;
  c.dx = dx;
  pass.device.run(&Table::linear_backward, c);
}

// output = middle + down(silu(gate) · up): dx holds the gradient of the output and becomes that of middle.
void Decoder::feed_forward_backward(const Pass& pass, int64_t layer, Saved& saved, float* dx) {
  const LayerWeights& w = pass.network.layers[size_t(layer)];
  const Device& on = pass.device;
  const int64_t rows = pass.rows(), d = config_.hidden, ff = config_.intermediate;
  const float* middle = static_cast<const float*>(saved.middle.data());
  float* middle_rstd = static_cast<float*>(saved.middle_rstd.data());
  void* normed = normed_.get(on, size_t(rows * d) * element());
  float* dnormed = dnormed_.as<float>(on, rows * d);
  act_.get(on, size_t(rows * ff) * element());
  device::SwigluCall gated = swiglu_call(pass, saved);
  on.run(&Table::swiglu, gated);
  float* dact = dact_.as<float>(on, rows * ff);
  linears_backward(pass, layer, kDown, kDown, act_.data(), saved, dx, d, dact);
  gated.dact = dact;
  gated.dgate_up = dgate_up_.as<float>(on, rows * 2 * ff);
  on.run(&Table::swiglu_backward, gated);
  norm(pass, w.post_norm, middle, normed, middle_rstd, rows);
  linears_backward(pass, layer, kGate, kUp, normed, saved, gated.dgate_up, 2 * ff, dnormed);
  norm_backward(pass, w.post_norm, dx, dnormed, middle, middle_rstd, rows, true);
}

// dx holds the gradient of the layer's output and becomes that of its input (left as it is where nobody below trains).
void Decoder::layer_backward(const Pass& pass, int64_t layer, Saved& saved, float* dx, bool to_input) {
  const LayerWeights& w = pass.network.layers[size_t(layer)];
  const Device& on = pass.device;
  const int64_t rows = pass.rows(), d = config_.hidden, qkv = config_.qkv_width();
  const float* input = static_cast<const float*>(saved_[size_t(layer)].input.data());
  float* input_rstd = static_cast<float*>(saved.input_rstd.data());
  feed_forward_backward(pass, layer, saved, dx);

  // Attention: middle = input + o(attention(q, k, v))
  float* dattended = dattended_.as<float>(on, rows * config_.q_width());
  linears_backward(pass, layer, kO, kO, saved.attended.data(), saved, dx, d, dattended);
  float* rotated = rotated_.as<float>(on, rows * qkv);
  rotate(pass, layer, saved, rotated);
  float* drotated = drotated_.as<float>(on, rows * qkv);
  on.run(&Table::attention_backward, device::AttentionBackwardCall{attention_call(pass, saved, rotated), dattended, drotated});
  on.run(&Table::rope_backward, rope_call(pass, layer, saved, drotated));
  void* normed = normed_.get(on, size_t(rows * d) * element());
  float* dnormed = dnormed_.as<float>(on, rows * d);
  norm(pass, w.input_norm, input, normed, input_rstd, rows);
  const bool below = to_input || w.input_norm.grad;
  linears_backward(pass, layer, kQ, kV, normed, saved, drotated, qkv, below ? dnormed : nullptr);
  if (below) norm_backward(pass, w.input_norm, dx, dnormed, input, input_rstd, rows, true);
}

void Decoder::backward(const Pass& pass, const float* dhidden) {
  const Plan& plan = pass.plan.plan;
  const Device& on = pass.device;
  const int64_t rows = plan.rows, d = config_.hidden;
  if (rows == 0) return;  // forward() was not called then
  if (!kept_) throw_error("BAD_ARGUMENT", "backward needs a score with keep before it");
  kept_ = false;
  float* dx = dx_.as<float>(on, rows * d);
  on.zero(dx, size_t(rows * d) * 4);
  float* dread = dread_.as<float>(on, plan.readouts * d);
  norm_backward(pass, pass.network.final_norm, dread, dhidden, static_cast<const float*>(read_.data()), static_cast<const float*>(read_rstd_.data()), plan.readouts, false);
  float* dread_rows = tail_ ? tail_dx_.as<float>(on, tail_->plan.rows * d) : dx;
  if (tail_) on.zero(dread_rows, size_t(tail_->plan.rows * d) * 4);
  on.run(&Table::gather_backward, device::GatherCall{(tail_ ? *tail_ : pass.plan).handle(), d, dread_rows, dread});

  const int64_t lowest = pass.network.trains_base ? 0 : pass.bank ? pass.bank->bank().lowest_layer() : config_.layers;
  for (int64_t l = config_.layers - 1; l >= lowest; --l) {
    pass.cancel.check();
    const bool tail = tail_ && l + 1 == config_.layers;
    Saved* saved = &saved_[size_t(l)];
    if (checkpoint_) {
      float* x = x_.as<float>(on, rows * d);
      on.copy(x, saved->input.data(), size_t(rows * d) * 4);
      if (tail) tail_forward(pass, l, scratch_, x);
      else layer_forward(pass, l, scratch_, x);
      saved = &scratch_;
    }
    const bool to_input = l > lowest || pass.network.trains_base;
    if (tail) tail_backward(pass, l, *saved, dx, to_input);
    else layer_backward(pass, l, *saved, dx, to_input);
  }
  if (float* grad = pass.network.embedding.grad) on.run(&Table::embed_backward, device::EmbedBackwardCall{pass.plan.handle(), dx, grad, d, config_.vocabulary});
}

}  // namespace pluralign
