// Vector code of AdamW and of the flat buffers' sums. Plain loops: the compiler vectorises them for each set.

static void adamw_simd(float* __restrict p, const float* __restrict g, float* __restrict m, float* __restrict v, int64_t n, const AdamWStep& s) {
  const float b1 = s.beta1, b2 = s.beta2, c1 = s.rest1, c2 = s.rest2, keep = 1.f - s.learning_rate * s.weight_decay;
  const float rate = float(double(s.learning_rate) / s.correction1), root = float(1.0 / std::sqrt(s.correction2)), eps = s.eps, scale = s.grad_scale;
  for (int64_t i = 0; i < n; ++i) {
    const float d = g[i] * scale, mi = m[i] * b1 + d * c1, vi_ = v[i] * b2 + d * d * c2;
    m[i] = mi;
    v[i] = vi_;
    p[i] = p[i] * keep - rate * (mi / (std::sqrt(vi_) * root + eps));
  }
}

static void axpy_simd(float* __restrict y, const float* __restrict x, float alpha, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += alpha * x[i];
}

// Sixteen float64 lanes, added at the end in a fixed order.
static double squared_norm_simd(const float* x, int64_t n) {
  double lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] += double(x[i + j]) * double(x[i + j]);
  double total = 0;
  for (; i < n; ++i) total += double(x[i]) * double(x[i]);
  for (double lane : lanes) total += lane;
  return total;
}

static void fill_adamw(Kernels& k) {
  k.adamw = adamw_simd;
  k.axpy = axpy_simd;
  k.squared_norm = squared_norm_simd;
}
