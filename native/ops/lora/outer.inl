// Gradients of factors: products of the columns of two matrices, added to what is there. Uses what simd.inl begins with.

// R columns of a, P vectors of b (whole ones, or one of n elements). Memory at `b_ahead` and `c_ahead` is asked for.
template <int R, int P, bool Whole, class T>
[[gnu::noinline]] static void outer_tile(int64_t k, const float* a, int64_t lda, const T* b, int64_t ldb, int64_t n, float* c, int64_t ldc, float alpha, int64_t b_ahead, int64_t c_ahead) {
  vf acc[R][P];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < P; ++j) {
      acc[i][j] = vf{};
      __builtin_prefetch(c + i * ldc + j * W + c_ahead);
    }
  for (int64_t p = 0; p < k; ++p, a += lda, b += ldb) {
    const vf b0 = Whole ? load(b) : load_tail(b, n), b1 = P == 2 ? load(b + W) : vf{};
    __builtin_prefetch(b + b_ahead);
    if (P * W * sizeof(T) > 64) __builtin_prefetch(b + W + b_ahead);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const vf av = splat(a[i]);
      acc[i][0] += av * b0;
      if constexpr (P == 2) acc[i][1] += av * b1;
    }
  }
  add_tile<R, P, Whole>(acc, n, c, ldc, alpha);
}

// Of b less than half a vector: a's columns lie in the lanes instead, and the tile is turned at its end.
template <int P, class T>
[[gnu::noinline]] static void outer_turned(int64_t k, const float* a, int64_t lda, const T* b, int64_t ldb, int64_t n, float* c, int64_t ldc, float alpha) {
  constexpr int H = W / 2;
  vf acc[P][H];
  for (int v = 0; v < P; ++v)
#pragma GCC unroll 16
    for (int j = 0; j < H; ++j) acc[v][j] = vf{};
  for (int64_t i = 0; i < P * W; ++i) __builtin_prefetch(c + i * ldc + 4 * kFactorAhead);
  for (int64_t p = 0; p < k; ++p, a += lda, b += ldb) {
    vf av[P];
    for (int v = 0; v < P; ++v) av[v] = load(a + v * W);
    if (n == H) {
#pragma GCC unroll 8
      for (int j = 0; j < H; ++j)
        for (int v = 0; v < P; ++v) acc[v][j] += av[v] * splat(to_float(b[j]));
    } else {
#pragma GCC unroll 8
      for (int j = 0; j < H; ++j)
        for (int v = 0; v < P; ++v) acc[v][j] += av[v] * splat(j < n ? to_float(b[j]) : 0.f);
    }
  }
  for (int v = 0; v < P; ++v) {
    transpose(acc[v]);
#pragma GCC unroll 16
    for (int i = 0; i < H; ++i) {
      float *low = c + (v * W + i) * ldc, *high = low + H * ldc;
      const vf sums = acc[v][i] * splat(alpha);
      store_tail(low, load_tail(low, n) + sums, n);
      store_tail(high, load_tail(high, n) + upper_half(sums, std::make_integer_sequence<int, W>()), n);
    }
  }
}

template <int P, bool Whole, class T>
INLINE void outer_columns(int64_t m, int64_t k, const float* a, int64_t lda, const T* b, int64_t ldb, int64_t n, float* c, int64_t ldc, float alpha, bool cold) {
  constexpr int R = MR < 8 ? 4 : P == 1 ? 16 : 8;
  const int64_t ahead = cold ? 4 * P * W : 0;
  int64_t i = 0;
  for (; i + R <= m; i += R) outer_tile<R, P, Whole>(k, a + i, lda, b, ldb, n, c + i * ldc, ldc, alpha, i == 0 ? ahead : 0, 0);
  for (; i + 4 <= m; i += 4) outer_tile<4, P, Whole>(k, a + i, lda, b, ldb, n, c + i * ldc, ldc, alpha, i == 0 ? ahead : 0, 0);
  for (; i < m; ++i) outer_tile<1, P, Whole>(k, a + i, lda, b, ldb, n, c + i * ldc, ldc, alpha, 0, 0);
}

// R columns of a at a time through all of b: in the order of c's memory.
template <int R, class T>
INLINE int64_t outer_rows(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const T* b, int64_t ldb, float* c, int64_t ldc, float alpha) {
  const int64_t ahead = n <= 4 * W ? 4 * kFactorAhead : kFactorAhead;  // c as a whole, or along its rows
  int64_t i = 0;
  for (; i + R <= m; i += R) {
    int64_t j = 0;
    for (; j + 2 * W <= n; j += 2 * W) outer_tile<R, 2, true>(k, a + i, lda, b + j, ldb, 2 * W, c + i * ldc + j, ldc, alpha, 0, ahead);
    for (; j + W <= n; j += W) outer_tile<R, 1, true>(k, a + i, lda, b + j, ldb, W, c + i * ldc + j, ldc, alpha, 0, ahead);
    if (j < n) outer_tile<R, 1, false>(k, a + i, lda, b + j, ldb, n - j, c + i * ldc + j, ldc, alpha, 0, ahead);
  }
  return i;
}

template <class T>
static void outer_typed(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const T* b, int64_t ldb, float* c, int64_t ldc, float alpha) {
  constexpr int R = MR >= 8 ? 8 : 4;
  if (n <= W / 2 && W > 4) {
    int64_t i = 0;
    for (; i + 2 * W <= m; i += 2 * W) outer_turned<2>(k, a + i, lda, b, ldb, n, c + i * ldc, ldc, alpha);
    for (; i + W <= m; i += W) outer_turned<1>(k, a + i, lda, b, ldb, n, c + i * ldc, ldc, alpha);
    outer_rows<1>(m - i, n, k, a + i, lda, b, ldb, c + i * ldc, ldc, alpha);
    return;
  }
  // Of few rows, or of few columns, c is most of what is read.
  if (k < 8 || n <= 4 * W) {
    const int64_t i = n <= W ? outer_rows<2 * R>(m, n, k, a, lda, b, ldb, c, ldc, alpha) : outer_rows<R>(m, n, k, a, lda, b, ldb, c, ldc, alpha);
    outer_rows<1>(m - i, n, k, a + i, lda, b, ldb, c + i * ldc, ldc, alpha);
    return;
  }
  int64_t j = 0;
  for (; j + 2 * W <= n; j += 2 * W) outer_columns<2, true>(m, k, a, lda, b + j, ldb, 2 * W, c + j, ldc, alpha, n > 4 * W);
  for (; j + W <= n; j += W) outer_columns<1, true>(m, k, a, lda, b + j, ldb, W, c + j, ldc, alpha, n > 4 * W);
  if (j < n) outer_columns<1, false>(m, k, a, lda, b + j, ldb, n - j, c + j, ldc, alpha, false);
}

static void outer_any(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const void* b, DType b_type, int64_t ldb, float* c,
                      int64_t ldc, float alpha) {
  if (b_type == DType::f32) outer_typed(m, n, k, a, lda, static_cast<const float*>(b), ldb, c, ldc, alpha);
  else outer_typed(m, n, k, a, lda, static_cast<const bf16*>(b), ldb, c, ldc, alpha);
}
