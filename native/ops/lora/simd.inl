// Narrow products of low-rank factors, straight from rows in memory. Every sum has one order, whatever the tile around it.

INLINE void add_lanes(float* to, vf v, int64_t n) {
  if (n >= W) store(to, load(to) + v);
  else store_tail(to, load_tail(to, n) + v, n);
}

// R columns of a, P vectors of b (whole ones, or one of n elements).
template <int R, int P, bool Whole, class T>
INLINE void outer_tile(int64_t k, const float* a, int64_t lda, const T* b, int64_t ldb, int64_t n, float* c, int64_t ldc, float alpha) {
  vf acc[R][P];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < P; ++j) acc[i][j] = vf{};
  for (int64_t p = 0; p < k; ++p, a += lda, b += ldb) {
    vf bv[P];
    for (int j = 0; j < P; ++j) bv[j] = Whole ? load(b + j * W) : load_tail(b, n);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const vf av = splat(a[i]);
      for (int j = 0; j < P; ++j) acc[i][j] += av * bv[j];
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < P; ++j) add_lanes(c + i * ldc + j * W, acc[i][j] * splat(alpha), n - j * W);
}

template <int P, bool Whole, class T>
INLINE void outer_columns(int64_t r, int64_t k, const float* a, int64_t lda, const T* b, int64_t ldb, int64_t n, float* c, int64_t ldc, float alpha) {
  constexpr int R = MR >= 8 ? 8 : 4;
  int64_t i = 0;
  for (; i + R <= r; i += R) outer_tile<R, P, Whole>(k, a + i, lda, b, ldb, n, c + i * ldc, ldc, alpha);
  for (; i < r; ++i) outer_tile<1, P, Whole>(k, a + i, lda, b, ldb, n, c + i * ldc, ldc, alpha);
}

template <class T>
static void outer_rows(int64_t r, int64_t n, int64_t k, const float* a, int64_t lda, const T* b, int64_t ldb, float* c, int64_t ldc, float alpha) {
  int64_t j = 0;
  for (; j + 2 * W <= n; j += 2 * W) outer_columns<2, true>(r, k, a, lda, b + j, ldb, 2 * W, c + j, ldc, alpha);
  for (; j + W <= n; j += W) outer_columns<1, true>(r, k, a, lda, b + j, ldb, W, c + j, ldc, alpha);
  if (j < n) outer_columns<1, false>(r, k, a, lda, b + j, ldb, n - j, c + j, ldc, alpha);
}

static void outer_any(int64_t r, int64_t n, int64_t k, const float* a, int64_t lda, const void* b, DType b_type, int64_t ldb, float* c,
                      int64_t ldc, float alpha) {
  if (b_type == DType::f32) outer_rows(r, n, k, a, lda, static_cast<const float*>(b), ldb, c, ldc, alpha);
  else outer_rows(r, n, k, a, lda, static_cast<const bf16*>(b), ldb, c, ldc, alpha);
}

// R rows of a, P vectors of b.
template <int R, int P, bool Whole>
INLINE void direct_tile(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, float* c, int64_t ldc, float alpha, bool accumulate) {
  vf acc[R][P];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < P; ++j) acc[i][j] = vf{};
  for (int64_t p = 0; p < k; ++p, b += ldb) {
    vf bv[P];
    for (int j = 0; j < P; ++j) bv[j] = Whole ? load(b + j * W) : load_tail(b, n);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const vf av = splat(a[i * lda + p]);
      for (int j = 0; j < P; ++j) acc[i][j] += av * bv[j];
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < P; ++j) {
      float* to = c + i * ldc + j * W;
      const vf v = acc[i][j] * splat(alpha);
      if (accumulate) add_lanes(to, v, n - j * W);
      else if (n - j * W >= W) store(to, v);
      else store_tail(to, v, n - j * W);
    }
}

template <int P, bool Whole>
INLINE void direct_columns(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, int64_t n, float* c, int64_t ldc, float alpha, bool accumulate) {
  constexpr int R = MR >= 8 ? 8 : 4;
  int64_t i = 0;
  for (; i + R <= m; i += R) direct_tile<R, P, Whole>(k, a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, alpha, accumulate);
  for (; i + 2 <= m; i += 2) direct_tile<2, P, Whole>(k, a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, alpha, accumulate);
  if (i < m) direct_tile<1, P, Whole>(k, a + i * lda, lda, b, ldb, n, c + i * ldc, ldc, alpha, accumulate);
}

static void direct_any(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, float alpha, bool accumulate) {
  int64_t j = 0;
  for (; j + 2 * W <= n; j += 2 * W) direct_columns<2, true>(m, k, a, lda, b + j, ldb, 2 * W, c + j, ldc, alpha, accumulate);
  for (; j + W <= n; j += W) direct_columns<1, true>(m, k, a, lda, b + j, ldb, W, c + j, ldc, alpha, accumulate);
  if (j < n) direct_columns<1, false>(m, k, a, lda, b + j, ldb, n - j, c + j, ldc, alpha, accumulate);
}

// R rows of a, Q rows of b: sums over lanes come last.
template <int R, int Q, class T>
INLINE void dots_tile(int64_t k, const T* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  vf acc[R][Q];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < Q; ++j) acc[i][j] = vf{};
  int64_t p = 0;
  for (; p + W <= k; p += W) {
    vf av[R];
    for (int i = 0; i < R; ++i) av[i] = load(a + i * lda + p);
    for (int j = 0; j < Q; ++j) {
      const vf bv = load(b + j * ldb + p);
      for (int i = 0; i < R; ++i) acc[i][j] += av[i] * bv;
    }
  }
  if (p < k)
    for (int j = 0; j < Q; ++j) {
      const vf bv = load_tail(b + j * ldb + p, k - p);
      for (int i = 0; i < R; ++i) acc[i][j] += load_tail(a + i * lda + p, k - p) * bv;
    }
  if constexpr (R * Q % W == 0) {
    // As sum() adds them, W sums at a time.
    for (int g = 0; g < R * Q; g += W) {
      vf lanes[W];
      for (int l = 0; l < W; ++l) lanes[l] = acc[(g + l) / Q][(g + l) % Q];
      transpose(lanes);
#pragma GCC unroll 4
      for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
      float sums[W];
      store(sums, lanes[0]);
      for (int l = 0; l < W; ++l) c[(g + l) / Q * ldc + (g + l) % Q] = sums[l];
    }
  } else {
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < Q; ++j) c[i * ldc + j] = sum(acc[i][j]);
  }
}

// Rows of a stay in the first-level cache while b passes by.
template <class T>
static void dots_typed(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  constexpr int R = MR >= 8 ? 4 : 2, Q = 4;
  if (m == 1 && n >= 2 * Q) {
    const int64_t whole = n / (2 * Q) * (2 * Q);
    for (int64_t j = 0; j < whole; j += 2 * Q) dots_tile<1, 2 * Q>(k, a, lda, b + j * ldb, ldb, c + j, ldc);
    b += whole * ldb;
    c += whole;
    n -= whole;
  }
  for (int64_t first = 0; first < m; first += 2 * R) {
    const int64_t last = first + 2 * R < m ? first + 2 * R : m;
    for (int64_t j = 0; j < n; j += Q) {
      int64_t i = first;
      if (j + Q <= n) {
        for (; i + R <= last; i += R) dots_tile<R, Q>(k, a + i * lda, lda, b + j * ldb, ldb, c + i * ldc + j, ldc);
        for (; i < last; ++i) dots_tile<1, Q>(k, a + i * lda, lda, b + j * ldb, ldb, c + i * ldc + j, ldc);
      }
      for (; i < last; ++i)
        for (int64_t q = j; q < n; ++q) dots_tile<1, 1>(k, a + i * lda, lda, b + q * ldb, ldb, c + i * ldc + q, ldc);
    }
  }
}

static void dots_any(int64_t m, int64_t n, int64_t k, const void* a, DType a_type, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  if (a_type == DType::f32) dots_typed(m, n, k, static_cast<const float*>(a), lda, b, ldb, c, ldc);
  else dots_typed(m, n, k, static_cast<const bf16*>(a), lda, b, ldb, c, ldc);
}

// R rows of h through panels of B (Kernels::pack_b): y (+)= alpha · h Bᵀ.
template <int R>
INLINE void step_panels(int64_t n, int64_t r, const float* h, const float* b, float* y, int64_t ldy, float alpha, bool accumulate) {
  for (int64_t j = 0; j < n; j += NR, b += r * NR) {
    vf acc[R][NV];
    for (int i = 0; i < R; ++i)
      for (int v = 0; v < NV; ++v) acc[i][v] = vf{};
    for (int64_t p = 0; p < r; ++p)
      for (int v = 0; v < NV; ++v) {
        const vf bv = load(b + p * NR + v * W);
        for (int i = 0; i < R; ++i) acc[i][v] += splat(h[i * r + p]) * bv;
      }
    for (int i = 0; i < R; ++i)
      for (int v = 0; v < NV; ++v) {
        const int64_t left = n - j - v * W;
        if (left <= 0) break;
        float* to = y + i * ldy + j + v * W;
        const vf sums = acc[i][v] * splat(alpha);
        if (accumulate) add_lanes(to, sums, left);
        else if (left >= W) store(to, sums);
        else store_tail(to, sums, left);
      }
  }
}

static void step_up_f32(int64_t rows, int64_t n, int64_t r, const float* h, const float* b, float* y, int64_t ldy, float alpha, bool accumulate) {
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4) step_panels<4>(n, r, h + i * r, b, y + i * ldy, ldy, alpha, accumulate);
  for (; i < rows; ++i) step_panels<1>(n, r, h + i * r, b, y + i * ldy, ldy, alpha, accumulate);
}

static void fill_lora(Kernels& k) {
  k.step_up_f32 = step_up_f32;
  k.outer = outer_any;
  k.direct = direct_any;
  k.dots = dots_any;
}
