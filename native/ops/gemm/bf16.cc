#include "bf16.h"

namespace pluralign {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t to) { return ceil_div(a, to) * to; }

// Below both a region costs more than its threads save: so many operations, so many elements of B to read.
constexpr double kSerialOperations = 8e6, kSerialElements = 2.5e5;

// How one product is cut: rows so that A's panels stay in the second-level cache, columns so that threads have enough to
// share.
struct Cut {
  double operations;
  int64_t first, rows, columns, row_parts, parts;  // first: the number of its first task
};

void cut(const Context& context, const Bf16Product& p, int64_t wanted, Cut& c) {
  const auto k = int64_t(c.operations / (2.0 * double(p.m) * double(p.n)));  // of a row, over its terms
  const int64_t step = context.kernels.bf16_columns, fit = context.kernels.bf16_rows_bytes / std::max<int64_t>(1, 2 * k) / kBf16Rows * kBf16Rows;
  c.row_parts = ceil_div(p.m, std::max(kBf16Rows, fit));
  const int64_t steps = ceil_div(p.n, step), column_parts = std::min(steps, ceil_div(wanted, c.row_parts));
  c.row_parts = std::min(ceil_div(p.m, kBf16Rows), std::max(c.row_parts, wanted / column_parts));
  c.rows = round_up(ceil_div(p.m, c.row_parts), kBf16Rows);
  c.row_parts = ceil_div(p.m, c.rows);
  c.columns = ceil_div(steps, column_parts) * step;
  c.parts = c.row_parts * ceil_div(p.n, c.columns);
}

void block(Context& context, int thread, const Bf16Product& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  Bf16Block::Term* terms = context.local[size_t(thread)].slot[2].as<Bf16Block::Term>(p.term_count);
  int64_t count = 0;
  for (int64_t t = 0; t < p.term_count; ++t) {
    const Bf16Term& term = p.terms[t];
    const int64_t begin = std::max(m0, term.begin), end = std::min(m1, term.end), panel = bf16_panel(term.k);
    if (begin >= end) continue;
    terms[count++] = {term.a + (begin - term.begin) / kBf16Panel * panel, term.b + n0 / kBf16Panel * panel, panel, panel, term.k, begin - m0, end - m0};
  }
  const Bf16Block b{m1 - m0, n1 - n0, terms, count, static_cast<char*>(p.c) + (m0 * p.ldc + n0) * int64_t(dtype_size(p.c_type)), p.c_type, p.ldc,
                    p.alpha, p.bias ? p.bias + n0 : nullptr, p.accumulate, context.local[size_t(thread)].slot[1].as<float>(round_up(m1 - m0, kBf16Rows) * 32),
                    p.addend ? p.addend + m0 * p.ldadd + n0 : nullptr, p.ldadd};
  context.kernels.multiply_bf16(b);
}

}  // namespace

void pack_bf16(Context& context, const Bf16Packing* packings, int64_t count) {
  // Tasks are slabs of panels, of about 64 KB.
  int64_t *first = context.cuts.as<int64_t>(2 * count + 1), *slab = first + count + 1;
  first[0] = 0;
  for (int64_t i = 0; i < count; ++i) {
    slab[i] = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, bf16_panel(packings[i].k)));
    first[i + 1] = first[i] + ceil_div(ceil_div(packings[i].rows, kBf16Panel), slab[i]);
  }
  const auto task = [&](int64_t t, int) {
    const int64_t i = std::upper_bound(first, first + count + 1, t) - first - 1;
    const Bf16Packing& p = packings[i];
    const int64_t panel = (t - first[i]) * slab[i], row = panel * kBf16Panel, rows = std::min(p.rows - row, slab[i] * kBf16Panel);
    if (p.turned) return context.kernels.turn_bf16(p.panels + panel * bf16_panel(p.k), p.turned, p.k, p.rows, panel, panel + (rows + kBf16Panel - 1) / kBf16Panel);
    const int64_t row_stride = p.side == Side::left ? p.operand.row_stride : p.operand.col_stride;
    const int64_t k_stride = p.side == Side::left ? p.operand.col_stride : p.operand.row_stride;
    const void* from = static_cast<const char*>(p.operand.data) + row * row_stride * int64_t(dtype_size(p.operand.type));
    context.kernels.pack_bf16[int(p.side)](p.panels + panel * bf16_panel(p.k), from, p.operand.type, rows, p.k, row_stride, k_stride, p.scale);
  };
  if (first[count] <= 2)
    for (int64_t t = 0; t < first[count]; ++t) task(t, 0);
  else context.pool.run(first[count], task);
}

void multiply_bf16(Context& context, const Bf16Product* products, int64_t count) {
  Cut* cuts = context.cuts.as<Cut>(count + 1);
  double total = 0, elements = 0;
  for (int64_t i = 0; i < count; ++i) {
    cuts[i].operations = 0;
    for (int64_t t = 0; t < products[i].term_count; ++t) {
      const double right = double(products[i].n) * double(products[i].terms[t].k);
      elements += right;
      cuts[i].operations += 2.0 * double(products[i].terms[t].end - products[i].terms[t].begin) * right;
    }
    total += cuts[i].operations;
  }
  const bool serial = context.pool.size() == 1 || (total < kSerialOperations && elements < kSerialElements);
  cuts[0].first = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool empty = products[i].m <= 0 || products[i].n <= 0;
    if (!empty) cut(context, products[i], serial ? 1 : std::max<int64_t>(1, int64_t(6 * context.pool.size() * cuts[i].operations / total)), cuts[i]);
    cuts[i + 1].first = cuts[i].first + (empty ? 0 : cuts[i].parts);
  }
  const auto task = [&](int64_t t, int thread) {
    const int64_t i = std::upper_bound(cuts, cuts + count + 1, t, [](int64_t task, const Cut& c) { return task < c.first; }) - cuts - 1;
    const Bf16Product& p = products[i];
    const Cut& c = cuts[i];
    const int64_t at = t - c.first, m0 = at % c.row_parts * c.rows, n0 = at / c.row_parts * c.columns;
    block(context, thread, p, m0, std::min(p.m, m0 + c.rows), n0, std::min(p.n, n0 + c.columns));
  };
  if (serial)
    for (int64_t t = 0; t < cuts[count].first; ++t) task(t, 0);
  else context.pool.run(cuts[count].first, task);
}

void gemm_bf16(Context& context, const Gemm& g) {
  bf16* a = context.packed_a.as<bf16>(bf16_panels(g.m, g.k));
  const bf16* b;
  Bf16Packing packings[2] = {{a, Side::left, g.a, g.m, g.k}};
  if (g.packed) {
    b = static_cast<const bf16*>(g.packed->panels.data()) + g.packed_column / kBf16Panel * bf16_panel(g.k);
  } else {
    bf16* panels = context.packed_b.as<bf16>(bf16_panels(g.n, g.k));
    packings[1] = {panels, Side::right, g.b, g.n, g.k};
    b = panels;
  }
  pack_bf16(context, packings, g.packed ? 1 : 2);
  const Bf16Term term{a, b, g.k, 0, g.m};
  const Bf16Product product{g.m, g.n, &term, 1, g.c, g.c_type, g.ldc, g.alpha, g.bias, g.accumulate};
  multiply_bf16(context, &product, 1);
}

}  // namespace pluralign
