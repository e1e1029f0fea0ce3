#include <cmath>
#include <cstring>

#include "base/status.h"
#include "decoder.h"
#include "ops/norm/norm.h"
#include "ops/swiglu/swiglu.h"

namespace pluralign {

LinearCall Decoder::call(const Pass& pass, int64_t layer, int first, int last, const void* x, const Saved& saved) {
  for (int t = first; t <= last; ++t) {
    const Linear& l = pass.network.layers[size_t(layer)].linear[t];
    ranges_[t].clear();
    const uint64_t stream = pass.dropout_seed == 0 ? 0 : pass.dropout_seed * 0x9e3779b97f4a7c15ull + uint64_t(layer * kTargets + t);
    if (pass.bank)
      for (const AdapterRun& run : pass.plan.runs)
        if (const LoraModule* m = pass.bank->module(run.adapter, layer, t)) ranges_[t].push_back({run.row, run.rows, m, stream});
    float* h = pass.bank ? static_cast<float*>(saved.low_rank.data()) + int64_t(t) * pass.plan.rows * pass.bank->largest_rank() : nullptr;
    parts_[t] = {target_out(config_, t), matrix(l.weight.data, l.weight.type, target_in(config_, t)), l.weight.packed, l.bias ? l.bias.floats() : nullptr, &ranges_[t], h};
  }
  return {pass.plan.rows, target_in(config_, first), storage_, x, parts_ + first, last - first + 1, pass.bank ? pass.bank->largest_rank() : 0, pass.plan.row_keys.data()};
}

void Decoder::linears(const Pass& pass, int64_t layer, int first, int last, const void* x, Saved& saved, void* y, int64_t ldy, bool residual) {
  const LinearCall c = call(pass, layer, first, last, x, saved);
  auto* at = static_cast<char*>(y);
  for (int t = first; t <= last; ++t) {
    parts_[t].y = at;
    parts_[t].ldy = ldy;
    at += size_t(parts_[t].out) * (residual ? 4 : element());
  }
  linear_forward(pass.context, c, residual);
}

AttentionShape Decoder::attention_shape() const {
  return {config_.heads, config_.kv_heads, config_.head_dim, float(1.0 / std::sqrt(double(config_.head_dim))), config_.window};
}

RopeShape Decoder::rope_shape(const LayerWeights& w) const {
  return {config_.heads, config_.kv_heads, config_.head_dim, w.q_norm ? w.q_norm.floats() : nullptr,
          w.k_norm ? w.k_norm.floats() : nullptr, float(config_.eps)};
}

void Decoder::rotate(const Pass& pass, int64_t layer, const Saved& saved, float* out) {
  rope(pass.context, rope_shape(pass.network.layers[size_t(layer)]), rope_, storage_, out, saved.qkv.data(), pass.plan.positions.data(), pass.plan.rows);
}

std::vector<AttentionSegment> Decoder::segments(const Pass& pass, int64_t layer, const float* rotated, float* gradient) const {
  const int64_t stride = config_.qkv_width(), k = config_.q_width(), v = k + config_.kv_width();
  std::vector<AttentionSegment> out;
  for (size_t i = 0; i < pass.plan.segments.size(); ++i) {
    const PlanSegment& s = pass.plan.segments[i];
    AttentionSegment& a = out.emplace_back(AttentionSegment{s.row, s.rows, s.prefix, {}});
    for (const PathSpan& p : s.path) {
      const float* at = rotated + p.row * stride;
      float* d = gradient ? gradient + p.row * stride : nullptr;
      a.path.push_back({at + k, at + v, stride, p.rows, d ? d + k : nullptr, d ? d + v : nullptr});
    }
  }
  return out;
}

void Decoder::attend(const Pass& pass, int64_t layer, Saved& saved, const float* rotated) {
  const int64_t rows = pass.plan.rows;
  if (pass.cache) {
    std::vector<CachedSequence> sequences;
    for (size_t i = 0; i < pass.plan.segments.size(); ++i) {
      const PlanSegment& s = pass.plan.segments[i];
      sequences.push_back(pass.cache->sequence(layer, pass.slots[i], s.row, s.rows, s.prefix));
    }
    return attention_cached(pass.context, attention_shape(), sequences, rotated, config_.qkv_width(), config_.q_width(),
                            config_.q_width() + config_.kv_width(), storage_, saved.attended.get(size_t(rows * config_.q_width()) * element()));
  }
  attention(pass.context, attention_shape(), segments(pass, layer, rotated, nullptr), rotated, config_.qkv_width(), storage_,
            saved.attended.get(size_t(rows * config_.q_width()) * element()));
}

void Decoder::layer_forward(const Pass& pass, int64_t layer, Saved& saved, float* x) {
  const LayerWeights& w = pass.network.layers[size_t(layer)];
  const int64_t rows = pass.plan.rows, d = config_.hidden, ff = config_.intermediate;
  if (pass.bank) saved.low_rank.as<float>(kTargets * rows * pass.bank->largest_rank());
  void* normed = normed_.get(size_t(rows * d) * element());
  rmsnorm(pass.context, storage_, normed, saved.input_rstd.as<float>(rows), x, w.input_norm.floats(), rows, d, float(config_.eps));
  const int64_t qkv = config_.qkv_width();
  char* raw = static_cast<char*>(saved.qkv.get(size_t(rows * qkv) * element()));
  linears(pass, layer, kQ, kV, normed, saved, raw, qkv, false);
  float* rotated = rotated_.as<float>(rows * qkv);
  rotate(pass, layer, saved, rotated);
  attend(pass, layer, saved, rotated);
  linears(pass, layer, kO, kO, saved.attended.data(), saved, x, d, true);

  std::memcpy(saved.middle.as<float>(rows * d), x, size_t(rows * d) * 4);
  rmsnorm(pass.context, storage_, normed, saved.middle_rstd.as<float>(rows), x, w.post_norm.floats(), rows, d, float(config_.eps));
  char* gate_up = static_cast<char*>(saved.gate_up.get(size_t(rows * 2 * ff) * element()));
  linears(pass, layer, kGate, kUp, normed, saved, gate_up, 2 * ff, false);
  void* act = act_.get(size_t(rows * ff) * element());
  swiglu(pass.context, storage_, act, gate_up, rows, ff);
  linears(pass, layer, kDown, kDown, act, saved, x, d, true);
}

void Decoder::forward(const Pass& pass, bool keep, bool checkpoint) {
  const Plan& plan = pass.plan;
  const int64_t rows = plan.rows, d = config_.hidden, stored = keep ? config_.layers : 0;
  kept_ = keep;
  checkpoint_ = checkpoint;
  int64_t positions = plan.longest;
  for (int32_t p : plan.positions) positions = std::max<int64_t>(positions, p + 1);
  rope_.reserve(positions, config_.rope_frequencies.data(), config_.head_dim / 2, config_.rope_factor);
  if (keep) saved_.resize(size_t(stored));
  float* x = x_.as<float>(rows * d);
  const Weight& e = pass.network.embedding;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = int64_t(plan.tokens[size_t(r)]) * d;
    for (int64_t c = 0; c < d; ++c)
      x[r * d + c] = e.type == DType::f32    ? static_cast<const float*>(e.data)[at + c]
                     : e.type == DType::bf16 ? to_float(static_cast<const bf16*>(e.data)[at + c])
                                             : to_float(static_cast<const f16*>(e.data)[at + c]);
  }
  for (int64_t l = 0; l < config_.layers; ++l) {
    pass.cancel.check();
    if (keep) std::memcpy(saved_[size_t(l)].input.as<float>(rows * d), x, size_t(rows * d) * 4);
    layer_forward(pass, l, keep && !checkpoint ? saved_[size_t(l)] : scratch_, x);
  }
  float* read = read_.as<float>(plan.readouts * d);
  for (int64_t i = 0; i < plan.readouts; ++i) std::memcpy(read + i * d, x + plan.read_rows[size_t(i)] * d, size_t(d) * 4);
  rmsnorm(pass.context, storage_, hidden_.get(size_t(std::max<int64_t>(1, plan.readouts) * d) * element()), read_rstd_.as<float>(plan.readouts), read,
          pass.network.final_norm.floats(), plan.readouts, d, float(config_.eps));
}

int64_t Decoder::activation_bytes() const {
  int64_t total = 0;
  const auto add = [&](const Saved& s) {
    for (const Buffer* b : {&s.input, &s.input_rstd, &s.qkv, &s.attended, &s.middle, &s.middle_rstd, &s.gate_up, &s.low_rank}) total += int64_t(b->bytes());
  };
  for (const Saved& s : saved_) add(s);
  add(scratch_);
  for (const Buffer* b : {&x_, &normed_, &rotated_, &act_, &hidden_, &read_, &read_rstd_, &dx_, &dnormed_, &drotated_, &dattended_, &dact_, &dgate_up_, &dread_})
    total += int64_t(b->bytes());
  return total;
}

}  // namespace pluralign
