// Products of bfloat16 by `vdpbf16ps`: up to 8 rows × 48 columns of accumulators, or 16 × 16, one pass over all terms. Few rows, as in a
// step of generation, take no more products than they have: they wait for memory. A row's sums are the same in any tile.

constexpr int kPairRows = 8, kPairPanels = 3;

// The columns of B that come after those in hand, asked for little by little while these are worked on: each line is then in
// the second-level cache before it is needed, wherever it was.
class Ahead {
 public:
  // Columns [first, last) of all terms, over so many rounds of 32 k.
  Ahead(const Bf16Block& block, int64_t first, int64_t last, int64_t rounds) : g(block), first_panel(first / 16), panels((last - first + 15) / 16) {
    int64_t lines = 0;
    for (int64_t t = 0; t < g.term_count; ++t) lines += panels * g.terms[t].b_panel / 32;
    each = rounds > 0 ? (lines + rounds - 1) / rounds * 64 : 0;
    if (each > 0) open();
  }
  void step() {
    if (at == end) return;
    const char* stop = end - at < each ? end : at + each;
    for (; at < stop; at += 64) _mm_prefetch(at, _MM_HINT_T1);
    if (at == end && ++term < g.term_count) open();
  }

 private:
  void open() {
    const Bf16Block::Term& t = g.terms[term];
    at = reinterpret_cast<const char*>(t.b + first_panel * t.b_panel);
    end = at + panels * t.b_panel * 2;
  }
  const Bf16Block& g;
  int64_t first_panel, panels, each = 0, term = 0;
  const char *at = nullptr, *end = nullptr;
};

// Two neighbours of k of R rows and P panels of columns.
template <int R, int P>
INLINE void add_pairs(__m512 (&sum)[R][P], const bf16* a, const bf16* b, int64_t b_panel) {
  __m512bh bv[P];
  for (int j = 0; j < P; ++j) bv[j] = (__m512bh)_mm512_loadu_si512(b + j * b_panel);
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    int32_t pair;
    __builtin_memcpy(&pair, a + i * 32, 4);
    const __m512bh av = (__m512bh)_mm512_set1_epi32(pair);
    for (int j = 0; j < P; ++j) sum[i][j] = _mm512_dpbf16_ps(sum[i][j], av, bv[j]);
  }
}

// Sums as they are, or with what C holds: what finish_rows makes of them where nothing else is asked for.
template <class T, int R, int P>
INLINE void store_sums(const Bf16Block& g, int64_t row, int64_t col, const __m512 (&sum)[R][P]) {
  T* c = static_cast<T*>(g.c) + row * g.ldc + col;
  for (int i = 0; i < R; ++i, c += g.ldc)
    for (int j = 0; j < P; ++j) store_rounded(c + j * 16, g.accumulate ? sum[i][j] + load_masked(c + j * 16, 0xffff) : sum[i][j], 0xffff);
}

// Rows of A are met anew where `fresh`: they come from the second-level cache or farther, and are asked for two blocks ahead.
template <int R, int P>
static void pairs(const Bf16Block& g, int64_t row, int64_t col, float* out, Ahead& ahead, bool fresh, bool plain) {
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
      ahead.step();
      if (fresh)
        for (int i = 0; i < R; ++i) _mm_prefetch(reinterpret_cast<const char*>(a + 4 * 512 + i * 32), _MM_HINT_T0);
      // Many rows: not unrolled, for the processor's own prefetching follows each load by its place in the code.
      if constexpr (R < kPairRows) {
        for (int64_t q = 0; q < n; ++q) add_pairs<R, P>(sum, a + q * 2, b + q * 32, term.b_panel);
      } else {
#pragma GCC unroll 1
        for (int64_t q = 0; q < n; ++q) add_pairs<R, P>(sum, a + q * 2, b + q * 32, term.b_panel);
      }
    }
  }
  if (plain && g.c_type == DType::f32) return store_sums<float>(g, row, col, sum);
  if (plain) return store_sums<bf16>(g, row, col, sum);
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < P; ++j) _mm512_storeu_ps(out + (i * P + j) * 16, sum[i][j]);
}

template <int P>
static void pairs_of(int64_t rows, const Bf16Block& g, int64_t row, int64_t col, float* out, Ahead& ahead, bool fresh, bool plain) {
  if (P == 1 && rows > 8) pairs<P == 1 ? 16 : 8, P>(g, row, col, out, ahead, fresh, plain && rows == 16);
  else if (rows > 4) pairs<8, P>(g, row, col, out, ahead, fresh, plain && rows == 8);
  else if (rows > 2) pairs<4, P>(g, row, col, out, ahead, fresh, false);
  else if (rows > 1) pairs<2, P>(g, row, col, out, ahead, fresh, false);
  else pairs<1, P>(g, row, col, out, ahead, fresh, false);
}

// Lines of C that a tile will write, or add to: they arrive while its sums run.
INLINE void expect_rows(const Bf16Block& g, int64_t row, int64_t col, int64_t rows, int64_t cols) {
  const int64_t size = g.c_type == DType::f32 ? 4 : 2;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t at = 0; at < cols * size; at += 64) __builtin_prefetch(static_cast<char*>(g.c) + ((row + i) * g.ldc + col) * size + at, 1, 3);
}

// Rows of C may lie a multiple of a page apart, so that lines of many rows do not fit a cache together: a tile of rows passes
// several tiles of columns, whose share of B fits the second-level cache together with the next one's, and C is written by
// whole lines. A handful of rows waits for memory whatever is asked for when.
static void multiply_pairs(const Bf16Block& g) {
  constexpr int64_t width = kPairPanels * 16, most = 4, handful = 4;
  alignas(64) float sums[kPairRows * width];
  int64_t bytes = 1, blocks = 0;
  for (int64_t t = 0; t < g.term_count; ++t) {
    bytes += g.terms[t].b_panel * kPairPanels * 2;
    blocks += (g.terms[t].k + 31) / 32;
  }
  // Of one panel of columns eight rows would be eight sums, each waiting for itself.
  const int64_t tall = g.n <= 16 ? 2 * kPairRows : kPairRows;
  const bool simple = g.alpha == 1.f && !g.bias && !g.addend;
  const int64_t fit = (int64_t(256) << 10) / bytes, widest = (fit < 1 ? 1 : fit > most ? most : fit) * width;
  // Nobody asked for the first columns beforehand, so that they are few.
  for (int64_t first = 0, next, chunk = width; first < g.n; first = next) {
    next = first + chunk + 16 < g.n ? first + chunk : g.n;
    const int64_t tiles = (g.m + kPairRows - 1) / kPairRows * (chunk / width);
    chunk = 2 * chunk < widest ? 2 * chunk : widest;
    Ahead ahead(g, next, next + chunk < g.n ? next + chunk : g.n, g.m > handful && next < g.n ? tiles * blocks : 0);
    for (int64_t row = 0; row < g.m; row += tall)
      for (int64_t col = first, some; col < next; col += some) {
        some = next - col > width && next - col <= width + 16 ? width - 16 : width;  // in halves, rather than one panel by itself
        const int64_t rows = g.m - row < tall ? g.m - row : tall;
        const int64_t cols = next - col < some ? next - col : some, panels = (cols + 15) / 16;
        const bool fresh = col == first && g.m > kPairRows, plain = simple && rows % kPairRows == 0 && cols % 16 == 0;
        if (g.m > handful) expect_rows(g, row, col, rows, cols);
        if (panels == 3) pairs_of<3>(rows, g, row, col, sums, ahead, fresh, plain);
        else if (panels == 2) pairs_of<2>(rows, g, row, col, sums, ahead, fresh, plain);
        else pairs_of<1>(rows, g, row, col, sums, ahead, fresh, plain);
        if (!plain) finish(g, row, col, sums, panels * 16, rows, cols);
      }
  }
}

// As multiply_adds, in registers: two of these start in a cycle and take six, so that a dozen chains do not fill them.
static double multiply_adds_pairs(int64_t n, volatile float* sink) {
  constexpr int chains = 24;
  const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f003f00), b = (__m512bh)_mm512_set1_ps(*sink);
  __m512 acc[chains];
  for (int i = 0; i < chains; ++i) acc[i] = _mm512_set1_ps(float(i));
  for (int64_t p = 0; p < n; ++p)
#pragma GCC unroll 24
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
