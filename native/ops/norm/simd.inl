// Vector code of the root-mean-square norm.

INLINE float dot3(const float* a, const float* b, const float* w, int64_t n) {
  vf acc = {};
  int64_t i = 0;
  for (; i + W <= n; i += W) acc += load(a + i) * load(b + i) * load(w + i);
  if (i < n) acc += load_tail(a + i, n - i) * load_tail(b + i, n - i) * load_tail(w + i, n - i);
  return sum(acc);
}

template <class T>
static void rmsnorm_rows(void* y, float* rstd, const float* x, const float* weight, int64_t rows, int64_t width, float eps) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * width;
    T* out = static_cast<T*>(y) + r * width;
    vf acc = {};
    int64_t i = 0;
    for (; i + W <= width; i += W) {
      const vf v = load(row + i);
      acc += v * v;
    }
    if (i < width) {
      const vf v = load_tail(row + i, width - i);
      acc += v * v;
    }
    const float s = 1.f / std::sqrt(sum(acc) / float(width) + eps);
    rstd[r] = s;
    for (i = 0; i + W <= width; i += W) store(out + i, load(row + i) * splat(s) * load(weight + i));
    if (i < width) store_tail(out + i, load_tail(row + i, width - i) * splat(s) * load_tail(weight + i, width - i), width - i);
  }
}

static void rmsnorm_rows_backward(float* dx, const float* dy, const float* x, const float* rstd, const float* weight, int64_t rows,
                                  int64_t width, bool accumulate) {
  for (int64_t r = 0; r < rows; ++r) {
    const float *g = dy + r * width, *row = x + r * width;
    float* out = dx + r * width;
    const float s = rstd[r], shift = dot3(g, row, weight, width) / float(width) * s * s * s;
    int64_t i = 0;
    for (; i + W <= width; i += W) {
      const vf d = load(g + i) * load(weight + i) * splat(s) - load(row + i) * splat(shift);
      store(out + i, accumulate ? load(out + i) + d : d);
    }
    if (i < width) {
      const int64_t n = width - i;
      const vf d = load_tail(g + i, n) * load_tail(weight + i, n) * splat(s) - load_tail(row + i, n) * splat(shift);
      store_tail(out + i, accumulate ? load_tail(out + i, n) + d : d, n);
    }
  }
}

static void fill_norm(Kernels& k) {
  k.rmsnorm[kF32] = rmsnorm_rows<float>;
  k.rmsnorm[kBf16] = rmsnorm_rows<bf16>;
  k.rmsnorm_backward = rmsnorm_rows_backward;
}
