// Products of bfloat16 by `vdpbf16ps`: up to 8 rows × 48 columns of accumulators, one pass over all terms. Few rows, as in a
// step of generation, take no more products than they have: they wait for memory. A row's sums are the same in any tile.

constexpr int kPairRows = 8, kPairPanels = 3;

template <int R, int P>
static void pairs(const Bf16Block& g, int64_t row, int64_t col, float* out) {
  __m512 sum[R][P];
  for (auto& r : sum)
    for (auto& v : r) v = _mm512_setzero_ps();
  for (int64_t t = 0; t < g.term_count; ++t) {
    const Bf16Block::Term& term = g.terms[t];
    if (row < term.begin || row >= term.end) continue;
    const int64_t at = row - term.begin;
    const bf16* a = term.a + at / 16 * term.a_panel + at % 16 * 32;
    const bf16* b = term.b + col / 16 * term.b_panel;
    for (int64_t left = (term.k + 1) / 2; left > 0; left -= 16, a += 512, b += 512) {
      const int64_t n = left < 16 ? left : 16;
      for (int64_t q = 0; q < n; ++q) {
        __m512bh bv[P];
        for (int j = 0; j < P; ++j) bv[j] = (__m512bh)_mm512_loadu_si512(b + j * term.b_panel + q * 32);
#pragma GCC unroll 8
        for (int i = 0; i < R; ++i) {
          int32_t pair;
          __builtin_memcpy(&pair, a + i * 32 + q * 2, 4);
          const __m512bh av = (__m512bh)_mm512_set1_epi32(pair);
          for (int j = 0; j < P; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], av, bv[j]);
        }
      }
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < P; ++j) _mm512_storeu_ps(out + (i * P + j) * 16, sum[i][j]);
}

template <int P>
static void pairs_of(int64_t rows, const Bf16Block& g, int64_t row, int64_t col, float* out) {
  if (rows > 4) pairs<8, P>(g, row, col, out);
  else if (rows > 2) pairs<4, P>(g, row, col, out);
  else if (rows > 1) pairs<2, P>(g, row, col, out);
  else pairs<1, P>(g, row, col, out);
}

// Rows of C may lie a multiple of a page apart, so that lines of many rows do not fit a cache together: a tile of rows passes
// several tiles of columns, whose share of B fits the second-level cache, and C is written by whole lines.
static void multiply_pairs(const Bf16Block& g) {
  constexpr int64_t width = kPairPanels * 16, most = 4;
  alignas(64) float sums[kPairRows * width];
  int64_t bytes = 1;
  for (int64_t t = 0; t < g.term_count; ++t) bytes += g.terms[t].b_panel * kPairPanels * 2;
  const int64_t fit = (int64_t(256) << 10) / bytes, chunk = (fit < 1 ? 1 : fit > most ? most : fit) * width;
  for (int64_t first = 0; first < g.n; first += chunk)
    for (int64_t row = 0; row < g.m; row += kPairRows)
      for (int64_t col = first; col < g.n && col < first + chunk; col += width) {
        const int64_t rows = g.m - row < kPairRows ? g.m - row : kPairRows;
        const int64_t cols = g.n - col < width ? g.n - col : width, panels = (cols + 15) / 16;
        if (panels == 3) pairs_of<3>(rows, g, row, col, sums);
        else if (panels == 2) pairs_of<2>(rows, g, row, col, sums);
        else pairs_of<1>(rows, g, row, col, sums);
        finish(g, row, col, sums, panels * 16, rows, cols);
      }
}

// As multiply_adds, in registers.
static double multiply_adds_pairs(int64_t n, volatile float* sink) {
  constexpr int chains = 12;
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f003f00), b = (__m512bh)_mm512_set1_ps(*sink);
  __m512 acc[chains];
  for (int i = 0; i < chains; ++i) acc[i] = _mm512_set1_ps(float(i));
  for (int64_t p = 0; p < n; ++p)
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) acc[i] = _mm512_dpbf16_ps(acc[i], a, b);
  __m512 total = _mm512_setzero_ps();
  for (int i = 0; i < chains; ++i) total += acc[i];
  *sink = sum((vf)total);
  return 4.0 * chains * W * double(n);
}

static void fill_bf16_pairs(Kernels& k) {
  k.multiply_bf16 = multiply_pairs;
  k.multiply_adds_bf16 = multiply_adds_pairs;
  k.bf16_columns = kPairPanels * 16;
  k.bf16_rows_bytes = 512 << 10;
}
