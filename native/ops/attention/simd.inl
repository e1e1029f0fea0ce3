// Row kernels of attention: scores to probabilities and back. Rows are padded to whole vectors by the caller.

static float softmax_row_simd(float* scores, int64_t lo, int64_t hi, int64_t n, float scale) {
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t i = lo; i < hi; ++i) top = scores[i] > top ? scores[i] : top;
  const int64_t begin = lo / W * W, end = (hi + W - 1) / W * W;
  for (int64_t i = 0; i < begin; ++i) scores[i] = 0.f;
  for (int64_t i = begin; i < lo; ++i) scores[i] = -std::numeric_limits<float>::infinity();
  for (int64_t i = hi; i < end; ++i) scores[i] = -std::numeric_limits<float>::infinity();
  for (int64_t i = end; i < n; ++i) scores[i] = 0.f;
  // -inf · 0 would be NaN, so the maximum is scaled apart from the scores.
  const vf s = splat(scale), shift = splat(top * scale);
  vf total = {};
  for (int64_t i = begin; i < end; i += W) {
    const vf p = vexp(load(scores + i) * s - shift);
    total += p;
    store(scores + i, p);
  }
  const float all = sum(total);
  const vf inverse = splat(1.f / all);
  for (int64_t i = begin; i < end; i += W) store(scores + i, load(scores + i) * inverse);
  return top * scale + std::log(all);
}

static void softmax_row_backward_simd(float* scores, float* dp, int64_t lo, int64_t hi, int64_t n, float scale, float lse, float delta) {
  for (int64_t i = 0; i < n; i += W) {
    vf p = vexp(load(scores + i) * splat(scale) - splat(lse));
    vf ds = p * (load(dp + i) - splat(delta)) * splat(scale);
    if (i < lo || i + W > hi) {
      float keep[W];
      for (int j = 0; j < W; ++j) keep[j] = i + j >= lo && i + j < hi ? 1.f : 0.f;
      const vi mask = (vi)(load(keep) > vf{});
      p = select(mask, p, vf{});
      ds = select(mask, ds, vf{});
    }
    store(scores + i, p);
    store(dp + i, ds);
  }
}

static void fill_attention(Kernels& k) {
  k.softmax_row = softmax_row_simd;
  k.softmax_row_backward = softmax_row_backward_simd;
}
