// Products of bfloat16 by the tiles of AMX: 32 × 32 of C in four tiles, A and B in two each. A panel's block is a tile.
// Instructions are written out, so that any compiler's assembler will do.

#define PLURALIGN_TILE_LOAD(tile, from) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(int64_t(64)) : "memory")
#define PLURALIGN_TILE_STORE(tile, to, stride) __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(int64_t(stride)) : "memory")
#define PLURALIGN_TILE_TAKE(tile, from, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"(int64_t(stride)) : "memory")
#define PLURALIGN_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
#define PLURALIGN_TILE_DOT(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

// All eight tiles of 16 rows × 64 bytes, on this thread until the end of the scope: tiles that are left in use make every
// switch of threads dearer.
struct TileScope {
  TileScope() {
    alignas(64) uint8_t layout[64] = {};
    layout[0] = 1;  // palette
    for (int t = 0; t < 8; ++t) {
      layout[16 + 2 * t] = 64;  // bytes of a row
      layout[48 + t] = 16;      // rows
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(layout));
  }
  ~TileScope() { __asm__ volatile("tilerelease" ::: "memory"); }
};

// C's tiles 0 1 / 2 3 (rows by columns) from k blocks [first, last) of the terms one after the other, for rows from `row`
// and columns from `col`. R, P: panels of rows and of columns, 1 or 2.
template <int R, int P>
INLINE void tile_sums(const Bf16Block& g, int64_t row, int64_t col, int64_t first, int64_t last) {
  int64_t before = 0;
  for (int64_t t = 0; t < g.term_count; ++t) {
    const Bf16Block::Term& term = g.terms[t];
    const int64_t blocks = (term.k + 31) / 32, begin = first > before ? first - before : 0;
    const int64_t end = last - before < blocks ? last - before : blocks;
    before += blocks;
    if (begin >= end || row < term.begin || row >= term.end) continue;
    const bf16* a0 = term.a + (row - term.begin) / 16 * term.a_panel + begin * 512;
    const bf16* b0 = term.b + col / 16 * term.b_panel + begin * 512;
    const bf16 *a1 = a0 + term.a_panel, *b1 = b0 + term.b_panel;
    for (int64_t p = begin; p < end; ++p, a0 += 512, a1 += 512, b0 += 512, b1 += 512) {
      PLURALIGN_TILE_LOAD(6, b0);
      PLURALIGN_TILE_LOAD(4, a0);
      PLURALIGN_TILE_DOT(0, 4, 6);
      if constexpr (P == 2) {
        PLURALIGN_TILE_LOAD(7, b1);
        PLURALIGN_TILE_DOT(1, 4, 7);
      }
      if constexpr (R == 2) {
        PLURALIGN_TILE_LOAD(5, a1);
        PLURALIGN_TILE_DOT(2, 5, 6);
        if constexpr (P == 2) PLURALIGN_TILE_DOT(3, 5, 7);
      }
    }
  }
}

// Rows from `row`: begins from zero or from `stage`, and ends in `stage` or in C.
template <int R, int P>
static void tile_pass(const Bf16Block& g, int64_t row, int64_t col, int64_t first, int64_t last, int64_t blocks) {
  constexpr int64_t stride = 128;
  float* stage = g.stage + row * 32;
  if (first == 0) {
    PLURALIGN_TILE_ZERO(0);
    if constexpr (P == 2) PLURALIGN_TILE_ZERO(1);
    if constexpr (R == 2) PLURALIGN_TILE_ZERO(2);
    if constexpr (R == 2 && P == 2) PLURALIGN_TILE_ZERO(3);
  } else {
    PLURALIGN_TILE_TAKE(0, stage, stride);
    if constexpr (P == 2) PLURALIGN_TILE_TAKE(1, stage + 16, stride);
    if constexpr (R == 2) PLURALIGN_TILE_TAKE(2, stage + 16 * 32, stride);
    if constexpr (R == 2 && P == 2) PLURALIGN_TILE_TAKE(3, stage + 16 * 32 + 16, stride);
  }
  tile_sums<R, P>(g, row, col, first, last);
  alignas(64) float sums[32 * 32];
  float* to = last < blocks ? stage : sums;
  PLURALIGN_TILE_STORE(0, to, stride);
  if constexpr (P == 2) PLURALIGN_TILE_STORE(1, to + 16, stride);
  if constexpr (R == 2) PLURALIGN_TILE_STORE(2, to + 16 * 32, stride);
  if constexpr (R == 2 && P == 2) PLURALIGN_TILE_STORE(3, to + 16 * 32 + 16, stride);
  if (last < blocks) return;
  const int64_t rows = g.m - row < 16 * R ? g.m - row : 16 * R, cols = g.n - col < 16 * P ? g.n - col : 16 * P;
  finish(g, row, col, sums, 32, rows, cols);
}

// k is walked in passes of at most 20 blocks, so that the columns of B in hand (40 KB) stay in the first-level cache while
// A comes from the second; between passes sums wait in `stage`, unrounded, so that the order of the sum is that of k.
static void multiply_tiles(const Bf16Block& g) {
  constexpr int64_t most = 20;
  int64_t blocks = 0;
  for (int64_t t = 0; t < g.term_count; ++t) blocks += (g.terms[t].k + 31) / 32;
  const int64_t passes = blocks > most ? (blocks + most - 1) / most : 1, each = (blocks + passes - 1) / passes;
  const TileScope scope;
  for (int64_t col = 0; col < g.n; col += 32)
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t first = pass * each, last = first + each < blocks ? first + each : blocks;
      for (int64_t row = 0; row < g.m; row += 32) {
        const bool tall = g.m - row > 16, wide = g.n - col > 16;
        if (tall && wide) tile_pass<2, 2>(g, row, col, first, last, blocks);
        else if (tall) tile_pass<2, 1>(g, row, col, first, last, blocks);
        else if (wide) tile_pass<1, 2>(g, row, col, first, last, blocks);
        else tile_pass<1, 1>(g, row, col, first, last, blocks);
      }
    }
}

// As multiply_adds: operands in tiles, random enough not to be zero.
static double multiply_adds_tiles(int64_t n, volatile float* sink) {
  alignas(64) bf16 data[512];
  for (int i = 0; i < 512; ++i) data[i] = to_bf16(*sink * float(i % 37 - 18));
  alignas(64) float sums[16 * 16];
  {
    const TileScope scope;
    PLURALIGN_TILE_ZERO(0);
    PLURALIGN_TILE_ZERO(1);
    PLURALIGN_TILE_ZERO(2);
    PLURALIGN_TILE_ZERO(3);
    PLURALIGN_TILE_LOAD(4, data);
    PLURALIGN_TILE_LOAD(5, data);
    PLURALIGN_TILE_LOAD(6, data);
    PLURALIGN_TILE_LOAD(7, data);
    for (int64_t p = 0; p < n; ++p) {
      PLURALIGN_TILE_DOT(0, 4, 6);
      PLURALIGN_TILE_DOT(1, 4, 7);
      PLURALIGN_TILE_DOT(2, 5, 6);
      PLURALIGN_TILE_DOT(3, 5, 7);
    }
    PLURALIGN_TILE_STORE(0, sums, 64);
  }
  *sink = sums[0];
  return 4.0 * 2 * 16 * 16 * 32 * double(n);
}

static void fill_bf16_tiles(Kernels& k) {
  k.multiply_bf16 = multiply_tiles;
  k.multiply_adds_bf16 = multiply_adds_tiles;
  k.bf16_columns = 32;
  k.bf16_rows_bytes = 1 << 20;
}
