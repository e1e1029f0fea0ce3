// The last layer where only some rows are read: keys and values of all rows, everything else of those that are read. What it
// leaves out nobody sees, so scores and gradients are those of the whole layer. On the CPU; elsewhere all rows run.
#include <cmath>
#include <cstring>

#include "decoder.h"
#include "ops/attention/attention.h"

namespace pluralign {

using device::Table;

namespace {

// Fewer than this share of the rows, or queries apart from keys cost more than is saved.
constexpr double kMostRead = 0.9;

// to[i] = from[rows[i]], rows of `bytes`.
void take(Context& context, void* to, const void* from, const std::vector<int32_t>& rows, size_t bytes) {
  context.pool.ranges(int64_t(rows.size()), 64, [&](int64_t i, int64_t end, int) {
    for (; i < end; ++i) std::memcpy(static_cast<char*>(to) + size_t(i) * bytes, static_cast<const char*>(from) + size_t(rows[size_t(i)]) * bytes, bytes);
  });
}

// to[rows[i]] += from[i]; no row stands twice.
void add_back(Context& context, float* to, const float* from, const std::vector<int32_t>& rows, int64_t width) {
  context.pool.ranges(int64_t(rows.size()), 64, [&](int64_t i, int64_t end, int) {
    for (; i < end; ++i) context.kernels.axpy(to + rows[size_t(i)] * width, from + i * width, 1.f, width);
  });
}

// Queries of the tail over keys and values of all rows, which lie side by side.
std::vector<AttentionSegment> segments_of(const Plan& tail, const AttentionShape& shape, const float* kv, float* dkv) {
  const int64_t width = shape.kv_heads * shape.head_dim, stride = 2 * width;
  std::vector<AttentionSegment> out;
  for (const PlanSegment& s : tail.segments) {
    AttentionSegment& a = out.emplace_back(AttentionSegment{s.row, s.rows, s.prefix, {}});
    for (const PathSpan& span : s.path) {
      const float* at = kv + span.row * stride;
      float* d = dkv ? dkv + span.row * stride : nullptr;
      a.path.push_back({at, at + width, stride, span.rows, d, d ? d + width : nullptr});
    }
  }
  return out;
}

AttentionShape shape_of(const ModelConfig& c) { return {c.heads, c.kv_heads, c.head_dim, float(1.0 / std::sqrt(double(c.head_dim))), c.window}; }

}  // namespace

void Decoder::find_tail(const Pass& pass) {
  tail_.reset();
  const Plan& plan = pass.plan.plan;
  if (!pass.device.on_cpu() || pass.cache || plan.readouts == 0) return;
  ReadRows read = read_rows_of(plan);
  if (double(read.rows.size()) > kMostRead * double(plan.rows)) return;
  tail_rows_ = std::move(read.rows);
  tail_ = std::make_unique<PlacedPlan>(pass.device, std::move(read.plan));
}

device::RopeCall Decoder::tail_rope_call(const Pass& pass, int64_t layer, bool queries, const DeviceBuffer& raw, float* out) const {
  const LayerWeights& w = pass.network.layers[size_t(layer)];
  return {pass.plan.handle(), queries ? config_.heads : 0, queries ? 0 : config_.kv_heads, config_.head_dim, w.q_norm ? w.q_norm.floats() : nullptr,
          w.k_norm ? w.k_norm.floats() : nullptr, float(config_.eps), storage_, rope_values_, raw.data(), out, queries ? w.q_norm.grad : nullptr,
          queries ? nullptr : w.k_norm.grad};
}

const void* Decoder::tail_norm(const Pass& pass, int64_t layer, const float* x, float* rstd, void* normed) {
  norm(pass, pass.network.layers[size_t(layer)].input_norm, x, normed, rstd, pass.rows());
  const size_t bytes = size_t(config_.hidden) * element();
  void* few = tail_normed_.get(pass.device, tail_rows_.size() * bytes);
  take(pass.device.cpu("a tail"), few, normed, tail_rows_, bytes);
  return few;
}

void Decoder::tail_rotate(const Pass& pass, const Pass& tail, int64_t layer, const Saved& saved) {
  pass.device.run(&Table::rope, tail_rope_call(pass, layer, false, saved.qkv, rotated_.as<float>(pass.device, pass.rows() * 2 * config_.kv_width())));
  pass.device.run(&Table::rope, tail_rope_call(tail, layer, true, tail_saved_.qkv, tail_rotated_.as<float>(pass.device, tail.rows() * config_.q_width())));
}

float* Decoder::tail_forward(const Pass& pass, int64_t layer, Saved& saved, const float* x) {
  const Device& on = pass.device;
  Context& cpu = on.cpu("a tail");
  const Pass tail = tail_pass(pass);
  Saved& mine = tail_saved_;
  const int64_t rows = pass.rows(), few = tail.rows(), d = config_.hidden, q = config_.q_width(), kv = 2 * config_.kv_width();
  if (pass.bank) {
    saved.low_rank.as<float>(on, kTargets * rows * pass.bank->bank().largest_rank());
    mine.low_rank.as<float>(on, kTargets * few * pass.bank->bank().largest_rank());
  }
  void* normed = normed_.get(on, size_t(rows * d) * element());
  const void* normed_few = tail_norm(pass, layer, x, saved.input_rstd.as<float>(on, rows), normed);
  linears(pass, layer, kK, kV, normed, saved, saved.qkv.get(on, size_t(rows * kv) * element()), kv, false);
  linears(tail, layer, kQ, kQ, normed_few, mine, mine.qkv.get(on, size_t(few * q) * element()), q, false);
  tail_rotate(pass, tail, layer, saved);
  const AttentionShape shape = shape_of(config_);
  attention(cpu, shape, segments_of(tail.plan.plan, shape, static_cast<const float*>(rotated_.data()), nullptr), static_cast<const float*>(tail_rotated_.data()), q,
            storage_, mine.attended.get(on, size_t(few * q) * element()));
  float* x_few = tail_x_.as<float>(on, few * d);
  take(cpu, x_few, x, tail_rows_, size_t(d) * 4);
  linears(tail, layer, kO, kO, mine.attended.data(), mine, x_few, d, true);
  feed_forward(tail, layer, mine, x_few);
  return x_few;
}

void Decoder::tail_backward(const Pass& pass, int64_t layer, Saved& saved, float* dx, bool to_input) {
  const LayerWeights& w = pass.network.layers[size_t(layer)];
  const Device& on = pass.device;
  Context& cpu = on.cpu("a tail");
  const Pass tail = tail_pass(pass);
  Saved& mine = tail_saved_;
  const int64_t rows = pass.rows(), few = tail.rows(), d = config_.hidden, q = config_.q_width(), kv = 2 * config_.kv_width();
  float* dx_few = static_cast<float*>(tail_dx_.data());
  feed_forward_backward(tail, layer, mine, dx_few);

  float* dattended = dattended_.as<float>(on, few * q);
  linears_backward(tail, layer, kO, kO, mine.attended.data(), mine, dx_few, d, dattended);
  tail_rotate(pass, tail, layer, saved);
  float *dq = tail_drotated_.as<float>(on, few * q), *dkv = drotated_.as<float>(on, rows * kv);
  on.zero(dkv, size_t(rows * kv) * 4);
  const AttentionShape shape = shape_of(config_);
  attention_backward(cpu, shape, segments_of(tail.plan.plan, shape, static_cast<const float*>(rotated_.data()), dkv), tail.plan.plan.trees,
                     static_cast<const float*>(tail_rotated_.data()), q, storage_, dattended, dq);
  on.run(&Table::rope_backward, tail_rope_call(pass, layer, false, saved.qkv, dkv));
  on.run(&Table::rope_backward, tail_rope_call(tail, layer, true, mine.qkv, dq));

  const float* input = static_cast<const float*>(saved_[size_t(layer)].input.data());
  float* input_rstd = static_cast<float*>(saved.input_rstd.data());
  void* normed = normed_.get(on, size_t(rows * d) * element());
  const void* normed_few = tail_norm(pass, layer, input, input_rstd, normed);
  const bool below = to_input || w.input_norm.grad;
  float *dnormed = below ? dnormed_.as<float>(on, rows * d) : nullptr, *dnormed_few = below ? tail_dnormed_.as<float>(on, few * d) : nullptr;
  linears_backward(pass, layer, kK, kV, normed, saved, dkv, kv, dnormed);
  linears_backward(tail, layer, kQ, kQ, normed_few, mine, dq, q, dnormed_few);
  if (!below) return;
  add_back(cpu, dnormed, dnormed_few, tail_rows_, d);
  add_back(cpu, dx, dx_few, tail_rows_, d);
  norm_backward(pass, w.input_norm, dx, dnormed, input, input_rstd, rows, true);
}

}  // namespace pluralign
