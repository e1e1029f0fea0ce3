// Narrow products of low-rank factors, straight from rows in memory: nothing is packed.

// R columns of a, P vectors of b.
template <int R, int P, class T>
INLINE void outer_tile(int64_t k, const float* a, int64_t lda, const T* b, int64_t ldb, int64_t n, float* c, int64_t c_row, int64_t c_col, float alpha) {
  vf acc[R][P];
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < P; ++j) acc[i][j] = vf{};
  for (int64_t p = 0; p < k; ++p, a += lda, b += ldb) {
    vf bv[P];
    for (int j = 0; j < P; ++j) bv[j] = n >= (j + 1) * W ? load(b + j * W) : load_tail(b + j * W, n - j * W);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i) {
      const vf av = splat(a[i]);
      for (int j = 0; j < P; ++j) acc[i][j] += av * bv[j];
    }
  }
  for (int i = 0; i < R; ++i)
    for (int j = 0; j < P; ++j) {
      const int64_t left = n - j * W;
      float lanes[W];
      store(lanes, acc[i][j] * splat(alpha));
      float* to = c + i * c_row + j * W * c_col;
      for (int64_t l = 0; l < (left < W ? left : W); ++l) to[l * c_col] += lanes[l];
    }
}

template <class T>
static void outer_rows(int64_t r, int64_t n, int64_t k, const float* a, int64_t lda, const T* b, int64_t ldb, float* c, int64_t c_row, int64_t c_col, float alpha) {
  constexpr int P = NV > 2 ? 2 : NV, R = MR >= 8 ? 8 : 4;
  for (int64_t j = 0; j < n; j += P * W) {
    const int64_t cols = n - j;
    int64_t i = 0;
    if (cols >= P * W)
      for (; i + R <= r; i += R) outer_tile<R, P>(k, a + i, lda, b + j, ldb, P * W, c + i * c_row + j * c_col, c_row, c_col, alpha);
    // The rest in single columns of a and vectors of b: the order of a sum is the same.
    for (; i < r; ++i)
      for (int64_t v = 0; v < P && v * W < cols; ++v)
        outer_tile<1, 1>(k, a + i, lda, b + j + v * W, ldb, cols - v * W < W ? cols - v * W : W, c + i * c_row + (j + v * W) * c_col, c_row, c_col, alpha);
  }
}

static void outer_any(int64_t r, int64_t n, int64_t k, const float* a, int64_t lda, const void* b, DType b_type, int64_t ldb, float* c,
                      int64_t c_row, int64_t c_col, float alpha) {
  if (b_type == DType::f32) outer_rows(r, n, k, a, lda, static_cast<const float*>(b), ldb, c, c_row, c_col, alpha);
  else outer_rows(r, n, k, a, lda, static_cast<const bf16*>(b), ldb, c, c_row, c_col, alpha);
}

static void fill_lora(Kernels& k) { k.outer = outer_any; }
