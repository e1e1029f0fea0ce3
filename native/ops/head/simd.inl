// Row kernels of the head.

static void logsumexp_row_simd(const float* logits, int64_t n, float* top, double* total, double* squares) {
  vf m = splat(*top);
  int64_t i = 0;
  for (; i + W <= n; i += W) m = vmax(m, load(logits + i));
  float best = maximum(m);
  for (; i < n; ++i) best = logits[i] > best ? logits[i] : best;
  if (best > *top) {
    const double shrink = *top == -std::numeric_limits<float>::infinity() ? 0.0 : std::exp(double(*top) - double(best));
    *total *= shrink;
    *squares *= shrink * shrink;
    *top = best;
  }
  const vf shift = splat(best);
  vf s1 = {}, s2 = {};
  for (i = 0; i + W <= n; i += W) {
    const vf e = vexp(load(logits + i) - shift);
    s1 += e;
    s2 += e * e;
  }
  if (i < n) {
    float rest[W];
    for (int j = 0; j < W; ++j) rest[j] = i + j < n ? logits[i + j] : -std::numeric_limits<float>::infinity();
    const vf e = vexp(load(rest) - shift);
    s1 += e;
    s2 += e * e;
  }
  *total += sum(s1);
  *squares += sum(s2);
}

static void head_gradient_row_simd(float* logits, int64_t n, float maximum, float factor) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store(logits + i, splat(factor) * vexp(load(logits + i) - splat(maximum)));
  if (i < n) store_tail(logits + i, splat(factor) * vexp(load_tail(logits + i, n - i) - splat(maximum)), n - i);
}

static void fill_head(Kernels& k) {
  k.logsumexp_row = logsumexp_row_simd;
  k.head_gradient_row = head_gradient_row_simd;
}
