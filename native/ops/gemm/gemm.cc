#include "gemm.h"

#include "bf16.h"

namespace pluralign {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
size_t type_size(DType t) { return dtype_size(t); }

const void* offset(const Operand& o, int64_t i, int64_t j) {
  return static_cast<const char*>(o.data) + (i * o.row_stride + j * o.col_stride) * int64_t(type_size(o.type));
}

// Rows of A whose panels for a block of k stay in the second-level cache while the columns of B pass by.
int64_t block_rows(int64_t mr, int64_t k) { return std::max<int64_t>(1, (int64_t(448) << 10) / (4 * mr * std::max<int64_t>(1, std::min(k, kGemmBlockK)))) * mr; }

// What is packed before the blocks of C are worked on. A: by blocks of k, or null where each block packs its own rows. B: whole
// k, from g's first column on, or null likewise.
struct Packed {
  const float *a, *b;
};

// One block of C: rows [m0, m1), columns [n0, n1), all of k.
void block(Context& context, int thread, const Gemm& g, const Packed& from, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  const Kernels& kr = context.kernels;
  const int64_t mr = kr.mr, nr = kr.nr, m_panels = ceil_div(g.m, mr), m = m1 - m0, n = n1 - n0;
  const int64_t some = from.a ? block_rows(mr, g.k) : m;
  auto& local = context.local[size_t(thread)];
  float* columns = from.b ? nullptr : local.slot[0].as<float>(ceil_div(n, nr) * nr * std::min(g.k, kGemmBlockK));
  float* rows = from.a ? nullptr : local.slot[2].as<float>(ceil_div(m, mr) * mr * std::min(g.k, kGemmBlockK));
  // A bfloat16 C is rounded once: sums over several blocks of k meet in float32.
  const bool staged = g.c_type == DType::bf16 && g.k > kGemmBlockK;
  float* stage = staged ? local.slot[1].as<float>(m * n) : nullptr;
  char* c = static_cast<char*>(g.c) + (m0 * g.ldc + n0) * int64_t(type_size(g.c_type));
  const float* bias = g.bias ? g.bias + n0 : nullptr;
  for (int64_t k0 = 0; k0 < g.k || k0 == 0; k0 += kGemmBlockK) {
    const int64_t kc = std::min(kGemmBlockK, g.k - k0);
    const bool first = k0 == 0, last = k0 + kc >= g.k;
    if (!from.a) kr.pack_a(rows, offset(g.a, m0, k0), g.a.type, m, kc, g.a.row_stride, g.a.col_stride);
    if (!from.b) kr.pack_b(columns, offset(g.b, k0, n0), g.b.type, n, kc, g.b.col_stride, g.b.row_stride);
    const float* a = from.a ? from.a + m_panels * mr * k0 + m0 / mr * kc * mr : rows;
    const float* b = from.b ? from.b + n0 / nr * g.k * nr + k0 * nr : columns;
    void* to = staged ? static_cast<void*>(stage) : c;
    const DType to_type = staged ? DType::f32 : g.c_type;
    const int64_t ld = staged ? n : g.ldc;
    for (int64_t i = 0; i < m; i += some)
      kr.panels(std::min(some, m - i), n, kc, a + i * kc, kc * mr, b, (from.b ? g.k : kc) * nr, static_cast<char*>(to) + i * ld * int64_t(type_size(to_type)), to_type,
                ld, g.alpha, last && !staged ? bias : nullptr, !first || (g.accumulate && !staged));
    for (int64_t i = 0; staged && last && i < m; ++i) {
      bf16* row = reinterpret_cast<bf16*>(c) + i * g.ldc;
      for (int64_t j = 0; j < n; ++j) row[j] = to_bf16(stage[i * n + j] + (bias ? bias[j] : 0.f) + (g.accumulate ? to_float(row[j]) : 0.f));
    }
    if (g.k == 0) break;
  }
}

// Strips of rows that go through all columns, each packing its rows when it needs them, which are then still near. `b`: packed.
void by_strips(Context& context, const Gemm& g, const float* b, int64_t strips) {
  const int64_t mr = context.kernels.mr, rows = ceil_div(ceil_div(g.m, mr), strips) * mr;
  constexpr int64_t wide = 4096;  // columns for which rows are packed once
  context.pool.run(ceil_div(g.m, rows), [&](int64_t t, int thread) {
    for (int64_t n0 = 0; n0 < g.n; n0 += wide) block(context, thread, g, {nullptr, b}, t * rows, std::min(g.m, (t + 1) * rows), n0, std::min(g.n, n0 + wide));
  });
}

// All of B packed by all threads, where it is not so large that it had better stay in pieces.
const float* pack_whole(Context& context, const Gemm& g) {
  constexpr int64_t most = int64_t(4) << 20;  // elements
  if (g.n * g.k > most || g.k == 0) return nullptr;
  const int64_t nr = context.kernels.nr, panels = ceil_div(g.n, nr), slab = std::max<int64_t>(1, ceil_div(panels, 4 * context.pool.size()));
  float* b = context.packed_b.as<float>(panels * nr * g.k);
  context.pool.run(ceil_div(panels, slab), [&](int64_t t, int) {
    const int64_t n0 = t * slab * nr;
    context.kernels.pack_b(b + n0 * g.k, offset(g.b, 0, n0), g.b.type, std::min(g.n - n0, slab * nr), g.k, g.b.col_stride, g.b.row_stride);
  });
  return b;
}

}  // namespace

void pack_right(const Kernels& kernels, PackedOperand& out, const Operand& b, int64_t n, int64_t k, bool bfloat16) {
  out.n = n;
  out.k = k;
  out.bfloat16 = bfloat16;
  if (bfloat16) return kernels.pack_bf16[1](out.panels.as<bf16>(bf16_panels(n, k)), b.data, b.type, n, k, b.col_stride, b.row_stride, 1.f);
  float* dst = out.panels.as<float>(ceil_div(n, kernels.nr) * kernels.nr * k);
  kernels.pack_b(dst, b.data, b.type, n, k, b.col_stride, b.row_stride);
}

void gemm(Context& context, const Gemm& g) {
  if (g.m <= 0 || g.n <= 0) return;
  const Kernels& kr = context.kernels;
  if (g.packed ? g.packed->bfloat16 : runs_in_bf16(kr, g.a.type, g.b.type, g.bfloat16)) return gemm_bf16(context, g);
  const int64_t mr = kr.mr, nr = kr.nr, m_panels = ceil_div(g.m, mr);
  const bool small = double(g.m) * double(g.n) * double(g.k) < 2e5;

  // With rows enough, each thread works on strips of its own.
  const float* b = g.packed ? static_cast<const float*>(g.packed->panels.data()) + g.packed_column / nr * g.k * nr : nullptr;
  const int64_t strips = ceil_div(g.m, block_rows(mr, g.k));
  if (!small && (context.pool.size() == 1 ? b || strips >= 4 : strips >= 3 * context.pool.size())) {
    const float* whole = b ? b : pack_whole(context, g);
    if (whole) return by_strips(context, g, whole, strips);
  }

  // A is packed once, by blocks of k, and shared by all tasks.
  float* a = context.packed_a.as<float>(m_panels * mr * std::max<int64_t>(1, g.k));
  const int64_t k_blocks = std::max<int64_t>(1, ceil_div(g.k, kGemmBlockK));
  const int64_t slab = std::max<int64_t>(1, ceil_div(m_panels, small ? 1 : 2 * context.pool.size()));
  const int64_t slabs = ceil_div(m_panels, slab);
  auto pack = [&](int64_t t, int) {
    const int64_t k0 = t / slabs * kGemmBlockK, kc = std::min(kGemmBlockK, g.k - k0), p0 = t % slabs * slab;
    const int64_t rows = std::min(g.m - p0 * mr, slab * mr);
    kr.pack_a(a + m_panels * mr * k0 + p0 * kc * mr, offset(g.a, p0 * mr, k0), g.a.type, rows, kc, g.a.row_stride, g.a.col_stride);
  };
  if (small) {
    for (int64_t t = 0; t < k_blocks * slabs; ++t) pack(t, 0);
    return block(context, 0, g, {a, b}, 0, g.m, 0, g.n);
  }
  context.pool.run(k_blocks * slabs, pack);

  // Columns first: B is then packed once. Rows are split too where there are too few columns for the threads.
  // A chunk of B stays in the second-level cache next to A's panels.
  const int64_t chunk = std::max<int64_t>(nr, std::min<int64_t>(384, ceil_div(g.n, context.pool.size())) / nr * nr);
  const int64_t n_parts = ceil_div(g.n, chunk);
  const int64_t wanted = context.pool.size() == 1 ? 1 : ceil_div(3 * context.pool.size(), n_parts);
  const int64_t m_chunk = std::max<int64_t>(1, ceil_div(m_panels, wanted)) * mr;
  const int64_t m_parts = n_parts >= 3 * context.pool.size() ? 1 : ceil_div(g.m, m_chunk);
  context.pool.run(n_parts * m_parts, [&](int64_t t, int thread) {
    const int64_t n0 = t / m_parts * chunk, m0 = t % m_parts * (m_parts == 1 ? 0 : m_chunk);
    block(context, thread, g, {a, b}, m0, m_parts == 1 ? g.m : std::min(g.m, m0 + m_chunk), n0, std::min(g.n, n0 + chunk));
  });
}

}  // namespace pluralign
