// Row kernels of attention: scores to probabilities and back. Rows are padded to whole vectors by the caller.

static void softmax_row_simd(float* scores, int64_t lo, int64_t hi, int64_t n, float scale) {
  const int64_t begin = lo / W * W, end = (hi + W - 1) / W * W;
  for (int64_t i = 0; i < begin; ++i) scores[i] = 0.f;
  for (int64_t i = begin; i < lo; ++i) scores[i] = -std::numeric_limits<float>::infinity();
  for (int64_t i = hi; i < end; ++i) scores[i] = -std::numeric_limits<float>::infinity();
  for (int64_t i = end; i < n; ++i) scores[i] = 0.f;
  vf most = load(scores + begin);
  for (int64_t i = begin + W; i < end; i += W) most = vmax(most, load(scores + i));
  const float top = maximum(most);
  // -inf · 0 would be NaN, so the maximum is scaled apart from the scores.
  const vf s = splat(scale), shift = splat(top * scale);
  vf total = {};
  for (int64_t i = begin; i < end; i += W) {
    const vf p = vexp(load(scores + i) * s - shift);
    total += p;
    store(scores + i, p);
  }
  const vf inverse = splat(1.f / sum(total));
  for (int64_t i = begin; i < end; i += W) store(scores + i, load(scores + i) * inverse);
}

static void softmax_row_backward_simd(const float* p, float* dp, int64_t lo, int64_t hi, int64_t n, float scale) {
  const int64_t begin = lo / W * W, end = (hi + W - 1) / W * W;
  for (int64_t i = 0; i < lo; ++i) dp[i] = 0.f;
  // The padding behind the row may hold anything, and anything times a zero probability need not be zero.
  for (int64_t i = hi; i < (end > n ? end : n); ++i) dp[i] = 0.f;
  vf dot = {};
  for (int64_t i = begin; i < end; i += W) dot += load(p + i) * load(dp + i);
  const vf delta = splat(sum(dot)), s = splat(scale);
  for (int64_t i = begin; i < end; i += W) store(dp + i, load(p + i) * (load(dp + i) - delta) * s);
}

static void round_rows_simd(bf16* to, int64_t ldt, const float* from, int64_t ldf, int64_t rows, int64_t n, const float* scale) {
  for (int64_t i = 0; i < rows; ++i, to += ldt, from += ldf) {
    const vf s = splat(scale ? scale[i] : 1.f);
    int64_t c = 0;
    for (; c + W <= n; c += W) store(to + c, load(from + c) * s);
    if (c < n) store_tail(to + c, load_tail(from + c, n - c) * s, n - c);
  }
}

static void fill_attention(Kernels& k) {
  k.softmax_row = softmax_row_simd;
  k.round_rows = round_rows_simd;
  k.softmax_row_backward = softmax_row_backward_simd;
}
