#include <cmath>

#include "base/status.h"
#include "decoder.h"

namespace pluralign {

using device::Table;

device::LinearCall Decoder::linear_call(const Pass& pass, int64_t layer, int first, int last, const void* x, const Saved& saved, int64_t ldy) const {
  device::LinearCall c{pass.plan.handle(), pass.rows(), target_in(config_, first), 0, x, storage_, last - first + 1, 0, 0, {}, nullptr};
  if (pass.bank) {
    c.h_stride = pass.bank->bank().largest_rank();
    c.adapters = pass.bank->bank().adapters();
  }
  for (int t = first; t <= last; ++t) {
    const Linear& l = pass.network.layers[size_t(layer)].linear[t];
    device::LinearPart& p = c.part[t - first];
    p.out = target_out(config_, t);
    p.weight = l.weight.view();
    p.packed = l.weight.packed;
    p.bias = l.bias ? l.bias.floats() : nullptr;
    p.ldy = ldy;
    p.dweight = l.weight.grad;
    p.dbias = l.bias.grad;
    if (!pass.bank) continue;
    p.modules = pass.bank->modules(layer, t);
    p.host_modules = pass.bank->host_modules(layer, t);
    p.h = static_cast<float*>(saved.low_rank.data()) + int64_t(t) * pass.rows() * c.h_stride;
    p.stream = pass.dropout_seed == 0 ? 0 : pass.dropout_seed * 0x9e3779b97f4a7c15ull + uint64_t(layer * kTargets + t);
  }
  return c;
}

void Decoder::linears(const Pass& pass, int64_t layer, int first, int last, const void* x, Saved& saved, void* y, int64_t ldy, bool residual) {
  if (pass.packed) return step_linears(pass, layer, first, last, x, y, ldy, residual);
  device::LinearCall c = linear_call(pass, layer, first, last, x, saved, ldy);
  c.residual = residual;
  auto* at = static_cast<char*>(y);
  for (int i = 0; i < c.count; ++i) {
    c.part[i].y = at;
    at += size_t(c.part[i].out) * (residual ? 4 : element());
  }
  pass.device.run(&Table::linear, c);
}

void Decoder::norm(const Pass& pass, const Weight& weight, const float* x, void* y, float* rstd, int64_t rows) {
  pass.device.run(&Table::norm, device::NormCall{rows, config_.hidden, x, weight.floats(), y, rstd, storage_, float(config_.eps)});
}

device::RopeCall Decoder::rope_call(const Pass& pass, int64_t layer, const Saved& saved, float* out) const {
  const LayerWeights& w = pass.network.layers[size_t(layer)];
  return {pass.plan.handle(), config_.heads, config_.kv_heads, config_.head_dim, w.q_norm ? w.q_norm.floats() : nullptr, w.k_norm ? w.k_norm.floats() : nullptr,
          float(config_.eps), storage_, rope_values_, saved.qkv.data(), out, w.q_norm.grad, w.k_norm.grad};
}

void Decoder::rotate(const Pass& pass, int64_t layer, const Saved& saved, float* out) { pass.device.run(&Table::rope, rope_call(pass, layer, saved, out)); }

device::AttentionCall Decoder::attention_call(const Pass& pass, const Saved& saved, const float* rotated) const {
  return {pass.plan.handle(), config_.heads, config_.kv_heads, config_.head_dim, config_.window, float(1.0 / std::sqrt(double(config_.head_dim))), storage_, rotated,
          saved.attended.data(), static_cast<float*>(saved.lse.data())};
}

void Decoder::attend(const Pass& pass, int64_t layer, Saved& saved, const float* rotated) {
  const int64_t rows = pass.rows();
  void* attended = saved.attended.get(pass.device, size_t(rows * config_.q_width()) * element());
  if (!pass.cache) {
    if (!pass.device.on_cpu()) saved.lse.as<float>(pass.device, rows * config_.heads);
    return pass.device.run(&Table::attention, attention_call(pass, saved, rotated));
  }
  if (const DeviceCache* cache = pass.cache->on_device()) {
    device::CachedAttentionCall c{attention_call(pass, saved, rotated), cache->layer(layer)};
    c.forward.lse = nullptr;
    return pass.device.run(&Table::attention_cached, c);
  }
  Context& cpu = pass.device.cpu("generation");
  std::vector<CachedSequence> sequences;
  for (size_t i = 0; i < pass.plan.plan.segments.size(); ++i) {
    const PlanSegment& s = pass.plan.plan.segments[i];
    sequences.push_back(pass.cache->sequence(layer, pass.slots[i], s.row, s.rows, s.prefix));
  }
  const device::AttentionCall c = attention_call(pass, saved, rotated);
  attention_cached(cpu, {{c.heads, c.kv_heads, c.head_dim, c.scale, c.window}, rotated, config_.qkv_width(), config_.q_width(),
                         config_.q_width() + config_.kv_width(), storage_, attended}, sequences);
}

device::SwigluCall Decoder::swiglu_call(const Pass& pass, const Saved& saved) const {
  return {pass.rows(), config_.intermediate, saved.gate_up.data(), act_.data(), nullptr, nullptr, storage_, 0};
}

void Decoder::layer_forward(const Pass& pass, int64_t layer, Saved& saved, float* x) {
  const LayerWeights& w = pass.network.layers[size_t(layer)];
  const Device& on = pass.device;
  const int64_t rows = pass.rows(), d = config_.hidden;
  if (pass.bank) saved.low_rank.as<float>(on, kTargets * rows * pass.bank->bank().largest_rank());
  void* normed = normed_.get(on, size_t(rows * d) * element());
  norm(pass, w.input_norm, x, normed, saved.input_rstd.as<float>(on, rows), rows);
  const int64_t qkv = config_.qkv_width();
  linears(pass, layer, kQ, kV, normed, saved, saved.qkv.get(on, size_t(rows * qkv) * element()), qkv, false);
  float* rotated = rotated_.as<float>(on, rows * qkv);
  rotate(pass, layer, saved, rotated);
  attend(pass, layer, saved, rotated);
  linears(pass, layer, kO, kO, saved.attended.data(), saved, x, d, true);
  feed_forward(pass, layer, saved, x);
}

void Decoder::feed_forward(const Pass& pass, int64_t layer, Saved& saved, float* x) {
  const LayerWeights& w = pass.network.layers[size_t(layer)];
  const Device& on = pass.device;
  const int64_t rows = pass.rows(), d = config_.hidden, ff = config_.intermediate;
  void* normed = normed_.get(on, size_t(rows * d) * element());
  on.copy(saved.middle.as<float>(on, rows * d), x, size_t(rows * d) * 4);
  norm(pass, w.post_norm, x, normed, saved.middle_rstd.as<float>(on, rows), rows);
  linears(pass, layer, kGate, kUp, normed, saved, saved.gate_up.get(on, size_t(rows * 2 * ff) * element()), 2 * ff, false);
  act_.get(on, size_t(rows * ff) * element());
  on.run(&Table::swiglu, swiglu_call(pass, saved));
  linears(pass, layer, kDown, kDown, act_.data(), saved, x, d, true);
}

void Decoder::reserve_positions(const Device& on, int64_t positions) {
  const bool grew = rope_.reserve(positions, config_.rope_frequencies.data(), config_.head_dim / 2, config_.rope_factor);
  if (!grew && rope_values_ && on.on_cpu() != (rope_buffer_.data() != nullptr)) return;
  rope_buffer_.release();
  rope_values_ = rope_.values().data();
  if (on.on_cpu()) return;
  float* values = rope_buffer_.as<float>(on, int64_t(rope_.values().size()));
  on.upload(values, rope_values_, rope_.values().size() * 4);
  rope_values_ = values;
}

void Decoder::forward(const Pass& pass, bool keep, bool checkpoint) {
  const Plan& plan = pass.plan.plan;
  const Device& on = pass.device;
  const int64_t rows = plan.rows, d = config_.hidden, stored = keep ? config_.layers : 0;
  kept_ = keep;
  checkpoint_ = checkpoint;
  int64_t positions = plan.longest;
  for (int32_t p : plan.positions) positions = std::max<int64_t>(positions, p + 1);
  reserve_positions(on, positions);
  if (keep) saved_.resize(size_t(stored));
  find_tail(pass);
  float* x = x_.as<float>(on, rows * d);
  on.run(&Table::embed, device::EmbedCall{pass.plan.handle(), pass.network.embedding.view(), x});
  for (int64_t l = 0; l < config_.layers; ++l) {
    pass.cancel.check();
    if (keep) on.copy(saved_[size_t(l)].input.as<float>(on, rows * d), x, size_t(rows * d) * 4);
    Saved& saved = keep && !checkpoint ? saved_[size_t(l)] : scratch_;
    if (tail_ && l + 1 == config_.layers) x = tail_forward(pass, l, saved, x);
    else layer_forward(pass, l, saved, x);
  }
  float* read = read_.as<float>(on, plan.readouts * d);
  on.run(&Table::gather, device::GatherCall{(tail_ ? *tail_ : pass.plan).handle(), d, x, read});
  norm(pass, pass.network.final_norm, read, hidden_.get(on, size_t(std::max<int64_t>(1, plan.readouts) * d) * element()), read_rstd_.as<float>(on, plan.readouts), plan.readouts);
}

int64_t Decoder::activation_bytes() const {
  int64_t total = 0;
  const auto add = [&](const Saved& s) {
    for (const DeviceBuffer* b : {&s.input, &s.input_rstd, &s.qkv, &s.attended, &s.lse, &s.middle, &s.middle_rstd, &s.gate_up, &s.low_rank}) total += int64_t(b->bytes());
  };
  for (const Saved& s : saved_) add(s);
  add(scratch_);
  add(tail_saved_);
  for (const DeviceBuffer* b : {&tail_x_, &tail_normed_, &tail_rotated_, &tail_dx_, &tail_dnormed_, &tail_drotated_, &x_, &normed_, &rotated_, &act_, &hidden_, &read_, &read_rstd_, &dx_, &dnormed_, &drotated_, &dattended_, &dact_, &dgate_up_, &dread_})
    total += int64_t(b->bytes());
  return total;
}

}  // namespace pluralign
