#include "fused.h"

#include "ops/gemm/bf16.h"

namespace pluralign {
namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The low-rank part of one linear on one range. Tiles of rows are aligned to the whole, so its products cover [begin, end),
// and what lies outside the range is zero.
struct Low {
  int64_t part;
  const LoraRange* range;
  int64_t begin, end, r;
  float* sums;   // [end - begin × stride]: x Aᵀ, or the gradient of it
  int64_t stride;
  bf16 *left, *into, *out_of;  // panels of `sums`, and of the factor that leads into it and out of it
};

struct Slices {
  explicit Slices(Buffer& buffer, int64_t elements) : at(buffer.as<bf16>(elements)) {}
  bf16* take(int64_t elements) { return (at += elements) - elements; }
  bf16* at;
};

int64_t count_ranges(const LinearCall& c) {
  int64_t n = 0;
  for (int64_t i = 0; i < c.count; ++i) n += int64_t(c.parts[i].ranges->size());
  return n;
}

// All fused ranges, by part. `sums` and panels are laid out for a factor of [r × k_in] into it and one of [n_out × r] out of it.
int64_t plan(Context& context, const LinearCall& c, bool forward, Low*& lows) {
  lows = context.shared[0].as<Low>(count_ranges(c));
  int64_t count = 0, sums = 0, panels = 0;
  const auto k_in = [&](const Low& l) { return forward ? c.in : c.parts[l.part].out; };
  const auto n_out = [&](const Low& l) { return forward ? c.parts[l.part].out : c.in; };
  for (int64_t i = 0; i < c.count; ++i)
    for (const LoraRange& range : *c.parts[i].ranges) {
      if (!fuses(range) || range.rows <= 0) continue;
      Low l{i, &range, range.row / kBf16Rows * kBf16Rows, std::min(c.rows, round_up(range.row + range.rows, kBf16Rows)), range.module->r, nullptr, range.module->r,
            nullptr, nullptr, nullptr};
      sums += (l.end - l.begin) * l.r;
      panels += bf16_panels(l.end - l.begin, l.r) + bf16_panels(l.r, k_in(l)) + bf16_panels(n_out(l), l.r);
      lows[count++] = l;
    }
  float* sum = context.shared[1].as<float>(sums);
  Slices slices(context.shared[2], panels);
  for (int64_t i = 0; i < count; ++i) {
    Low& l = lows[i];
    l.sums = sum;
    sum += (l.end - l.begin) * l.r;
    l.left = slices.take(bf16_panels(l.end - l.begin, l.r));
    l.into = slices.take(bf16_panels(l.r, k_in(l)));
    l.out_of = slices.take(bf16_panels(n_out(l), l.r));
  }
  return count;
}

// Zeroes the rows outside the range and packs the sums.
void pack_sums(Context& context, Low* lows, int64_t count, float* const* kept, int64_t kept_stride, bool scaled) {
  context.pool.run(count, [&](int64_t i, int) {
    Low& l = lows[i];
    const LoraRange& range = *l.range;
    for (int64_t row = l.begin; row < l.end; ++row) {
      float* s = l.sums + (row - l.begin) * l.stride;
      if (row < range.row || row >= range.row + range.rows) std::fill(s, s + l.r, 0.f);
      else if (kept) std::copy_n(s, l.r, kept[l.part] + row * kept_stride);
    }
    context.kernels.pack_bf16[0](l.left, l.sums, DType::f32, l.end - l.begin, l.r, l.stride, 1, scaled ? range.module->scale : 1.f);
  });
}

}  // namespace

const std::vector<LoraRange>& unfused(Context& context, const std::vector<LoraRange>& ranges) {
  context.ranges.clear();
  for (const LoraRange& r : ranges)
    if (!fuses(r)) context.ranges.push_back(r);
  return context.ranges;
}

void fused_forward(Context& context, const LinearCall& c, bool residual) {
  Low* lows;
  const int64_t count = plan(context, c, true, lows);
  int64_t weights = 0;
  for (int64_t i = 0; i < c.count; ++i)
    if (!c.parts[i].packed) weights += bf16_panels(c.parts[i].out, c.in);
  bf16* x = context.packed_a.as<bf16>(bf16_panels(c.rows, c.in));
  Slices right(context.packed_b, weights);
  Bf16Packing* packings = context.shared[3].as<Bf16Packing>(1 + c.count + 2 * count);
  Bf16Term* terms = context.shared[4].as<Bf16Term>(c.count + 2 * count);
  Bf16Product* products = context.shared[5].as<Bf16Product>(c.count + count);
  const bf16** base = context.shared[6].as<const bf16*>(c.count);
  float** kept = context.shared[7].as<float*>(c.count);

  int64_t n = 0;
  packings[n++] = {x, Side::left, matrix(c.x, DType::bf16, c.in), c.rows, c.in};
  for (int64_t i = 0; i < c.count; ++i) {
    const LinearPart& p = c.parts[i];
    kept[i] = p.h;
    base[i] = p.packed ? static_cast<const bf16*>(p.packed->panels.data()) : right.take(bf16_panels(p.out, c.in));
    if (!p.packed) packings[n++] = {const_cast<bf16*>(base[i]), Side::right, {p.weight.data, p.weight.type, 1, p.weight.row_stride}, p.out, c.in};
  }
  for (int64_t i = 0; i < count; ++i) {
    const LoraModule& m = *lows[i].range->module;
    packings[n++] = {lows[i].into, Side::right, transposed(m.a, DType::f32, c.in), m.r, c.in};
    packings[n++] = {lows[i].out_of, Side::right, transposed(m.b, DType::f32, m.r), c.parts[lows[i].part].out, m.r};
  }
  pack_bf16(context, packings, n);

  for (int64_t i = 0; i < count; ++i) {
    const Low& l = lows[i];
    const int64_t m = l.end - l.begin;
    terms[i] = {x + l.begin / kBf16Panel * bf16_panel(c.in), l.into, c.in, 0, m};
    products[i] = {m, l.r, &terms[i], 1, l.sums, DType::f32, l.stride};
  }
  multiply_bf16(context, products, count);
  pack_sums(context, lows, count, kept, c.h_stride, true);

  n = 0;
  for (int64_t i = 0, l = 0; i < c.count; ++i) {
    const LinearPart& p = c.parts[i];
    const Bf16Term* first = terms + n;
    terms[n++] = {x, base[i], c.in, 0, c.rows};
    for (; l < count && lows[l].part == i; ++l) terms[n++] = {lows[l].left, lows[l].out_of, lows[l].r, lows[l].begin, lows[l].end};
    products[i] = {c.rows, p.out, first, terms + n - first, p.y, residual ? DType::f32 : DType::bf16, p.ldy, 1.f, p.bias, residual, p.addend, p.ldadd};
  }
  multiply_bf16(context, products, c.count);
}

void fused_backward(Context& context, const LinearCall& c, float* dx) {
  Low* lows;
  const int64_t count = plan(context, c, false, lows);
  int64_t left = 0, weights = 0;
  for (int64_t i = 0; i < c.count; ++i) {
    left += bf16_panels(c.rows, c.parts[i].out);
    weights += bf16_panels(c.in, c.parts[i].out);
  }
  if (count == 0 && !dx) return;
  Slices dys(context.packed_a, left), right(context.packed_b, dx ? weights : 0);
  Bf16Packing* packings = context.shared[3].as<Bf16Packing>(2 * c.count + 2 * count);
  Bf16Term* terms = context.shared[4].as<Bf16Term>(c.count + count);
  Bf16Product* products = context.shared[5].as<Bf16Product>(1 + count);
  const bf16** base = context.shared[6].as<const bf16*>(2 * c.count);
  const bf16** dy = base + c.count;

  int64_t n = 0;
  for (int64_t i = 0; i < c.count; ++i) {
    const LinearPart& p = c.parts[i];
    bf16* d = dys.take(bf16_panels(c.rows, p.out));
    dy[i] = d;
    packings[n++] = {d, Side::left, matrix(p.dy, DType::f32, p.ldy), c.rows, p.out};
    if (!dx) continue;
    bf16* w = right.take(bf16_panels(c.in, p.out));
    base[i] = w;
    packings[n++] = {w, Side::right, p.weight, c.in, p.out, 1.f, p.packed ? static_cast<const bf16*>(p.packed->panels.data()) : nullptr};
  }
  for (int64_t i = 0; i < count; ++i) {
    const LoraModule& m = *lows[i].range->module;
    packings[n++] = {lows[i].into, Side::right, matrix(m.b, DType::f32, m.r), m.r, c.parts[lows[i].part].out};
    packings[n++] = {lows[i].out_of, Side::right, matrix(m.a, DType::f32, c.in), c.in, m.r};
  }
  pack_bf16(context, packings, n);

  for (int64_t i = 0; i < count; ++i) {
    const Low& l = lows[i];
    const int64_t m = l.end - l.begin, out = c.parts[l.part].out;
    terms[i] = {dy[l.part] + l.begin / kBf16Panel * bf16_panel(out), l.into, out, 0, m};
    products[i] = {m, l.r, &terms[i], 1, l.sums, DType::f32, l.stride, l.range->module->scale};
  }
  multiply_bf16(context, products, count);
  pack_sums(context, lows, count, nullptr, 0, false);

  if (dx) {
    n = 0;
    for (int64_t i = 0; i < c.count; ++i) terms[n++] = {dy[i], base[i], c.parts[i].out, 0, c.rows};
    for (int64_t i = 0; i < count; ++i) terms[n++] = {lows[i].left, lows[i].out_of, lows[i].r, lows[i].begin, lows[i].end};
    const Bf16Product product{c.rows, c.in, terms, n, dx, DType::f32, c.in};
    multiply_bf16(context, &product, 1);
  }

  // Factors may be shared, so a task owns columns of all of them: the sum over ranges keeps its order.
  int64_t widest = c.in;
  for (int64_t i = 0; i < c.count; ++i) widest = std::max(widest, c.parts[i].out);
  constexpr int64_t chunk = 96;
  const int64_t chunks = (widest + chunk - 1) / chunk;
  if (count == 0) return;
  context.pool.run(2 * chunks, [&](int64_t t, int) {
    const int64_t c0 = t / 2 * chunk;
    for (int64_t i = 0; i < count; ++i) {
      const Low& l = lows[i];
      const LinearPart& p = c.parts[l.part];
      const LoraRange& range = *l.range;
      const LoraModule& m = *range.module;
      if (t % 2) {
        const int64_t c1 = std::min(c.in, c0 + chunk);
        if (m.da && c0 < c1)
          context.kernels.outer(m.r, c1 - c0, range.rows, l.sums + (range.row - l.begin) * l.stride, l.stride,
                                static_cast<const bf16*>(c.x) + range.row * c.in + c0, DType::bf16, c.in, m.da + c0, c.in, 1.f);
      } else {
        const int64_t c1 = std::min(p.out, c0 + chunk);
        if (m.db && c0 < c1)
          context.kernels.outer(c1 - c0, m.r, range.rows, p.dy + range.row * p.ldy + c0, p.ldy, p.h + range.row * c.h_stride, DType::f32, c.h_stride,
                                m.db + c0 * m.r, m.r, m.scale);
      }
    }
  });
}

}  // namespace pluralign
