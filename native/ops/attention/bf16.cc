#include "bf16.h"

#include "ops/gemm/bf16.h"
#include "tile.h"

namespace pluralign {
using namespace attention_detail;
namespace {

// Queries of a tile, of one head: a block of k of the products that lead back to keys and values.
constexpr int64_t kQueries = 32;

// One segment under one key head, on one thread.
struct Work {
  Work(Context& context_, const AttentionShape& shape_, const AttentionSegment& s_, int64_t head_, int thread)
      : kernels(context_.kernels), slots(context_.local[size_t(thread)].slot), shape(shape_), s(s_), head(head_), width(shape_.head_dim),
        group(shape_.heads / shape_.kv_heads), length(s_.prefix + s_.rows), ld(round_up(length, kBf16K)) {
    keys = slots[0].as<float>(length * width);
    values = slots[1].as<float>(length * width);
    gather(s, head, width, keys, values);
  }

  // Right operands: positions as columns, and positions as k.
  bf16* columns(int slot, const float* from) const {
    bf16* to = slots[slot].as<bf16>(bf16_panels(length, width));
    kernels.pack_bf16[1](to, from, DType::f32, length, width, width, 1, 1.f);
    return to;
  }
  bf16* rows(int slot, const float* from) const {
    bf16* to = slots[slot].as<bf16>(bf16_panels(width, length));
    kernels.pack_bf16[1](to, from, DType::f32, width, length, 1, width, 1.f);
    return to;
  }

  void multiply(int64_t m, int64_t n, const Bf16Block::Term* terms, int64_t count, float* c, int64_t ldc, bool accumulate = false) const {
    kernels.multiply_bf16({m, n, terms, count, c, DType::f32, ldc, 1.f, nullptr, accumulate, slots[13].as<float>(round_up(m, kBf16Rows) * 32)});
  }
  void multiply(int64_t m, int64_t n, const Bf16Block::Term& term, float* c, int64_t ldc) const { multiply(m, n, &term, 1, c, ldc); }

  // Panels of m rows (of `stride`, one head of each) as a left operand, and of their transpose.
  void left(bf16* to, const float* from, int64_t m, int64_t stride) const { kernels.pack_bf16[0](to, from, DType::f32, m, width, stride, 1, 1.f); }
  void turned(bf16* to, const float* from, int64_t m, int64_t stride) const { kernels.pack_bf16[0](to, from, DType::f32, width, m, 1, stride, 1.f); }

  const Kernels& kernels;
  Buffer* slots;
  const AttentionShape& shape;
  const AttentionSegment& s;
  const int64_t head, width, group, length, ld;
  float *keys, *values;
};

// Queries [begin, begin + m) against the n keys from `first` on, a multiple of 32, so that lanes keep their place on the path.
struct Span {
  Span(const Work& w, int64_t begin_) : begin(begin_), m(std::min(kQueries, w.s.rows - begin_)) {
    const int64_t position = w.s.prefix + begin;
    first = w.shape.window > 0 ? std::max<int64_t>(0, position - w.shape.window + 1) / kBf16K * kBf16K : 0;
    n = position + m - first;
  }
  SoftmaxTile tile(const Work& w, float* scores) const { return {scores, w.ld, m, w.s.prefix + begin + 1 - first, w.shape.window, n, w.shape.scale}; }
  int64_t begin, m, first, n;
};

void forward(const Work& w, const float* q, int64_t stride, bf16* out) {
  const int64_t narrow = bf16_panel(w.width), deep = bf16_panel(w.length);
  const bf16 *keys = w.columns(2, w.keys), *values = w.rows(3, w.values);
  bf16* queries = w.slots[4].as<bf16>(bf16_panels(kQueries, w.width));
  bf16* left = w.slots[5].as<bf16>(bf16_panels(kQueries, w.ld));
  float* scores = w.slots[6].as<float>(kQueries * w.ld);
  float* sums = w.slots[7].as<float>(kQueries * w.width);
  float inverse[kQueries];
  for (int64_t begin = 0; begin < w.s.rows; begin += kQueries) {
    const Span t(w, begin);
    for (int64_t h = w.head * w.group; h < (w.head + 1) * w.group; ++h) {
      const int64_t row = w.s.row + begin;
      w.left(queries, q + row * stride + h * w.width, t.m, stride);
      w.multiply(t.m, t.n, {queries, keys + t.first / kBf16Panel * narrow, narrow, narrow, w.width, 0, t.m}, scores, w.ld);
      w.kernels.softmax_bf16(t.tile(w, scores), left, inverse);
      w.multiply(t.m, w.width, {left, values + t.first * kBf16Panel, bf16_panel(t.n), deep, t.n, 0, t.m}, sums, w.width);
      w.kernels.round_rows(out + (row * w.shape.heads + h) * w.width, w.shape.heads * w.width, sums, w.width, t.m, w.width, inverse);
    }
  }
}

// Adds `gradients` [width × length], rows of ld, to one head of the path's keys or values.
void scatter(const Work& w, const float* gradients, float* KeySpan::* into) {
  const int64_t nr = w.kernels.nr;
  float* turned = w.slots[12].as<float>(round_up(w.width, nr) * w.length);
  w.kernels.pack_b(turned, gradients, DType::f32, w.width, w.length, w.ld, 1);
  int64_t at = 0;
  for (const KeySpan& span : w.s.path)
    for (int64_t i = 0; i < span.count; ++i, ++at)
      for (int64_t d = 0; d < w.width; d += nr)
        w.kernels.axpy(span.*into + i * span.stride + w.head * w.width + d, turned + d * w.length + at * nr, 1.f, std::min(nr, w.width - d));
}

void backward(const Work& w, const float* q, int64_t stride, const float* dout, float* dq) {
  const int64_t narrow = bf16_panel(w.width), deep = bf16_panel(w.length), most = bf16_panels(kQueries, std::max(w.ld, w.width));
  const bf16 *key_columns = w.columns(2, w.keys), *value_columns = w.columns(3, w.values), *key_rows = w.rows(4, w.keys);
  bf16* rows = w.slots[5].as<bf16>(bf16_panels(kQueries, w.width));
  bf16* ds_left = w.slots[6].as<bf16>(most);
  float* scores = w.slots[7].as<float>(2 * kQueries * w.ld);
  float* grads = scores + kQueries * w.ld;
  float* dkeys = w.slots[8].as<float>(2 * w.width * w.ld);
  float* dvalues = dkeys + w.width * w.ld;
  std::fill(dkeys, dkeys + 2 * w.width * w.ld, 0.f);
  // Of each head of the group: queries and gradients turned, probabilities and gradients of scores as right operands.
  const int64_t thin = bf16_panels(w.width, kQueries), wide = bf16_panels(w.ld, kQueries), panel = bf16_panel(kQueries);
  bf16* turned = w.slots[9].as<bf16>(2 * w.group * thin);
  bf16* right = w.slots[10].as<bf16>(2 * w.group * wide);
  Bf16Block::Term* terms = w.slots[11].as<Bf16Block::Term>(2 * w.group);

  for (int64_t begin = 0; begin < w.s.rows; begin += kQueries) {
    const Span t(w, begin);
    const int64_t row = w.s.row + begin, heads = w.shape.heads * w.width;
    for (int64_t j = 0; j < w.group; ++j) {
      const int64_t at = (w.head * w.group + j) * w.width;
      const float *qs = q + row * stride + at, *ds = dout + row * heads + at;
      w.left(rows, qs, t.m, stride);
      w.multiply(t.m, t.n, {rows, key_columns + t.first / kBf16Panel * narrow, narrow, narrow, w.width, 0, t.m}, scores, w.ld);
      w.left(rows, ds, t.m, heads);
      w.multiply(t.m, t.n, {rows, value_columns + t.first / kBf16Panel * narrow, narrow, narrow, w.width, 0, t.m}, grads, w.ld);
      bf16 *q_turned = turned + 2 * j * thin, *d_turned = q_turned + thin, *p_right = right + 2 * j * wide, *ds_right = p_right + wide;
      w.kernels.softmax_bf16_backward(t.tile(w, scores), grads, ds_left, p_right, ds_right);
      w.multiply(t.m, w.width, {ds_left, key_rows + t.first * kBf16Panel, bf16_panel(t.n), deep, t.n, 0, t.m}, dq + row * stride + at, stride);
      w.turned(q_turned, qs, t.m, stride);
      w.turned(d_turned, ds, t.m, heads);
      terms[j] = {q_turned, ds_right, panel, panel, t.m, 0, w.width};
      terms[w.group + j] = {d_turned, p_right, panel, panel, t.m, 0, w.width};
    }
    // dkeysᵀ += Σ_heads qᵀ ds, dvaluesᵀ += Σ_heads doutᵀ p
    w.multiply(w.width, t.n, terms, w.group, dkeys + t.first, w.ld, true);
    w.multiply(w.width, t.n, terms + w.group, w.group, dvalues + t.first, w.ld, true);
  }
  scatter(w, dkeys, &KeySpan::dk);
  scatter(w, dvalues, &KeySpan::dv);
}

// As the kernels for narrow heads take it.
NarrowAttention narrow(const Work& w, const float* q, int64_t stride) {
  const int64_t room = narrow_room(w.length);
  return {w.s.prefix, w.s.rows, w.length, w.group, w.width, w.shape.window, w.shape.scale, w.keys, w.values, q + w.s.row * stride + w.head * w.group * w.width, stride,
          w.slots[2].as<bf16>(80 * room), w.slots[3].as<float>(64 * room)};
}

void forward_narrow(const Work& w, const float* q, int64_t stride, bf16* out) {
  const int64_t heads = w.shape.heads * w.width;
  w.kernels.attend_narrow(narrow(w, q, stride), out + w.s.row * heads + w.head * w.group * w.width, heads);
}

void backward_narrow(const Work& w, const float* q, int64_t stride, const float* dout, float* dq) {
  const int64_t heads = w.shape.heads * w.width, at = w.head * w.group * w.width, size = w.length * w.width;
  float* dkeys = w.slots[4].as<float>(2 * size);
  std::fill_n(dkeys, 2 * size, 0.f);
  w.kernels.attend_narrow_backward(narrow(w, q, stride), dout + w.s.row * heads + at, heads, dq + w.s.row * stride + at, dkeys, dkeys + size);
  for (const KeySpan& span : w.s.path)
    for (int64_t i = 0; i < span.count; ++i, dkeys += w.width) {
      const int64_t to = i * span.stride + w.head * w.width;
      for (int64_t c = 0; c < w.width; ++c) span.dk[to + c] += dkeys[c];
      for (int64_t c = 0; c < w.width; ++c) span.dv[to + c] += dkeys[size + c];
    }
}

bool is_narrow(const Context& context, const AttentionShape& shape) { return context.kernels.attend_narrow && shape.head_dim <= kNarrow && shape.heads / shape.kv_heads <= kNarrow; }

}  // namespace

void attention_bf16(Context& context, const AttentionShape& shape, const std::vector<AttentionSegment>& segments, const float* q,
                    int64_t stride, bf16* out) {
  const auto run = is_narrow(context, shape) ? forward_narrow : forward;
  context.pool.run(int64_t(segments.size()) * shape.kv_heads, [&](int64_t task, int thread) {
    run(Work(context, shape, segments[size_t(task / shape.kv_heads)], task % shape.kv_heads, thread), q, stride, out);
  });
}

void attention_bf16_backward(Context& context, const AttentionShape& shape, const std::vector<AttentionSegment>& segments,
                             const std::vector<std::vector<int>>& trees, const float* q, int64_t stride, const float* dout, float* dq) {
  const auto run = is_narrow(context, shape) ? backward_narrow : backward;
  context.pool.run(int64_t(trees.size()) * shape.kv_heads, [&](int64_t task, int thread) {
    for (int s : trees[size_t(task / shape.kv_heads)]) run(Work(context, shape, segments[size_t(s)], task % shape.kv_heads, thread), q, stride, dout, dq);
  });
}

}  // namespace pluralign
