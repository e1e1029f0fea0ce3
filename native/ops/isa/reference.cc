// The specification of every row kernel: plain loops, float64 accumulation.
#include <cmath>
#include <limits>

#include "ops/table.h"

namespace pluralign::isa_reference {

void fill_bilinear(Kernels&);  // ops/bilinear/reference.cc

namespace {

double read(const void* p, DType type, int64_t i) {
  switch (type) {
    case DType::f32: return static_cast<const float*>(p)[i];
    case DType::bf16: return to_float(static_cast<const bf16*>(p)[i]);
    default: return to_float(static_cast<const f16*>(p)[i]);
  }
}

void pack(float* dst, const void* src, DType type, int64_t rows, int64_t k, int64_t row_stride, int64_t k_stride) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t p = 0; p < k; ++p) dst[i * k + p] = float(read(src, type, i * row_stride + p * k_stride));
}

void panels(int64_t m, int64_t n, int64_t k, const float* a, int64_t a_step, const float* b, int64_t b_step, void* c, DType c_type,
            int64_t ldc, float alpha, const float* bias, bool accumulate) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += double(a[i * a_step + p]) * double(b[j * b_step + p]);
      sum *= alpha;
      if (bias) sum += bias[j];
      if (accumulate) sum += read(c, c_type, i * ldc + j);
      if (c_type == DType::f32) static_cast<float*>(c)[i * ldc + j] = float(sum);
      else static_cast<bf16*>(c)[i * ldc + j] = to_bf16(float(sum));
    }
}

void outer(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const void* b, DType b_type, int64_t ldb, float* c, int64_t ldc, float alpha) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += a[p * lda + i] * read(b, b_type, p * ldb + j);
      c[i * ldc + j] = float(c[i * ldc + j] + alpha * sum);
    }
}

void direct(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, float alpha, bool accumulate) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += double(a[i * lda + p]) * b[p * ldb + j];
      c[i * ldc + j] = float(alpha * sum + (accumulate ? c[i * ldc + j] : 0.f));
    }
}

void pass(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  direct(m, n, k, a, lda, b, ldb, c, ldc, 1.f, true);
}

void up(int64_t m, int64_t n, int64_t r, const float* h, int64_t ldh, const float* b, void* y, DType type, int64_t ldy, float alpha, bool accumulate) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {  // panels are one column wide
      double sum = 0;
      for (int64_t p = 0; p < r; ++p) sum += double(h[i * ldh + p]) * double(b[j * r + p]);
      const float all = float(double(alpha) * sum) + (accumulate ? float(read(y, type, i * ldy + j)) : 0.f);
      if (type == DType::f32) static_cast<float*>(y)[i * ldy + j] = all;
      else static_cast<bf16*>(y)[i * ldy + j] = to_bf16(all);
    }
}

void dots(int64_t m, int64_t n, int64_t k, const void* a, DType a_type, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t p = 0; p < k; ++p) sum += read(a, a_type, i * lda + p) * b[j * ldb + p];
      c[i * ldc + j] = float(sum);
    }
}

template <class T>
void rmsnorm(void* y, float* rstd, const float* x, const float* weight, int64_t rows, int64_t width, float eps) {
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) squares += double(x[r * width + i]) * x[r * width + i];
    const double s = 1 / std::sqrt(squares / double(width) + eps);
    rstd[r] = float(s);
    for (int64_t i = 0; i < width; ++i) static_cast<T*>(y)[r * width + i] = from_float<T>(float(x[r * width + i] * s * weight[i]));
  }
}

void rmsnorm_backward(float* dx, const float* dy, const float* x, const float* rstd, const float* weight, int64_t rows, int64_t width, bool accumulate) {
  for (int64_t r = 0; r < rows; ++r) {
    const double s = rstd[r];
    double dot = 0;
    for (int64_t i = r * width; i < (r + 1) * width; ++i) dot += double(dy[i]) * weight[i - r * width] * x[i];
    for (int64_t i = r * width; i < (r + 1) * width; ++i) {
      const double d = double(dy[i]) * weight[i - r * width] * s - x[i] * s * s * s * dot / double(width);
      dx[i] = float(accumulate ? dx[i] + d : d);
    }
  }
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

template <class T>
void swiglu(void* a, const void* gate_up, int64_t rows, int64_t width) {
  const T* g = static_cast<const T*>(gate_up);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) {
      const double gate = to_float(g[r * 2 * width + i]), up = to_float(g[r * 2 * width + width + i]);
      static_cast<T*>(a)[r * width + i] = from_float<T>(float(gate * sigmoid(gate) * up));
    }
}

template <class T>
void swiglu_backward(float* d_gate_up, const float* da, const void* gate_up, int64_t rows, int64_t width) {
  const T* g = static_cast<const T*>(gate_up);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; ++i) {
      const double gate = to_float(g[r * 2 * width + i]), up = to_float(g[r * 2 * width + width + i]), d = da[r * width + i];
      const double s = sigmoid(gate);
      d_gate_up[r * 2 * width + i] = float(d * up * s * (1 + gate * (1 - s)));
      d_gate_up[r * 2 * width + width + i] = float(d * gate * s);
    }
}

void rotate(float* x, const float* cos, const float* sin, int64_t half, int64_t heads, bool back) {
  for (int64_t h = 0; h < heads; ++h, x += 2 * half)
    for (int64_t i = 0; i < half; ++i) {
      const double a = x[i], b = x[half + i], s = back ? -double(sin[i]) : double(sin[i]);
      x[i] = float(a * cos[i] - b * s);
      x[half + i] = float(b * cos[i] + a * s);
    }
}

void widen(float* to, const bf16* from, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_float(from[i]);
}

void softmax_row(float* scores, int64_t lo, int64_t hi, int64_t n, float scale) {
  double top = -std::numeric_limits<double>::infinity(), sum = 0;
  for (int64_t i = lo; i < hi; ++i) top = std::max(top, double(scores[i]) * scale);
  for (int64_t i = lo; i < hi; ++i) sum += std::exp(double(scores[i]) * scale - top);
  for (int64_t i = 0; i < n; ++i) scores[i] = i >= lo && i < hi ? float(std::exp(double(scores[i]) * scale - top) / sum) : 0.f;
}

void round_rows(bf16* to, int64_t ldt, const float* from, int64_t ldf, int64_t rows, int64_t n, const float* scale) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t c = 0; c < n; ++c) to[i * ldt + c] = to_bf16(from[i * ldf + c] * (scale ? scale[i] : 1.f));
}

void softmax_row_backward(const float* p, float* dp, int64_t lo, int64_t hi, int64_t n, float scale) {
  double delta = 0;
  for (int64_t i = lo; i < hi; ++i) delta += double(p[i]) * dp[i];
  for (int64_t i = 0; i < n; ++i) dp[i] = i >= lo && i < hi ? float(p[i] * (double(dp[i]) - delta) * scale) : 0.f;
}

void logsumexp_row(const float* logits, int64_t n, float* maximum, double* sum, double* squares) {
  float top = *maximum;
  for (int64_t i = 0; i < n; ++i) top = std::max(top, logits[i]);
  const double shrink = std::exp(double(*maximum) - double(top));
  *sum *= shrink;
  *squares *= shrink * shrink;
  *maximum = top;
  for (int64_t i = 0; i < n; ++i) {
    const double e = std::exp(double(logits[i]) - top);
    *sum += e;
    *squares += e * e;
  }
}

void head_gradient_row(float* logits, int64_t n, float maximum, float factor) {
  for (int64_t i = 0; i < n; ++i) logits[i] = float(double(factor) * std::exp(double(logits[i]) - maximum));
}

void adamw(float* p, const float* g, float* m, float* v, int64_t n, const AdamWStep& s) {
  for (int64_t i = 0; i < n; ++i) {
    const double d = double(g[i]) * s.grad_scale;
    const double mi = m[i] * double(s.beta1) + d * s.rest1, vi = v[i] * double(s.beta2) + d * d * s.rest2;
    m[i] = float(mi);
    v[i] = float(vi);
    p[i] = float(p[i] * (1 - double(s.learning_rate) * s.weight_decay) -
                 s.learning_rate * (mi / s.correction1) / (std::sqrt(vi / s.correction2) + s.eps));
  }
}

void axpy(float* y, const float* x, float alpha, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = float(y[i] + double(alpha) * x[i]);
}

double squared_norm(const float* x, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += double(x[i]) * x[i];
  return total;
}

double multiply_adds(int64_t n, volatile float* sink) {
  double sum = 0;
  const double a = *sink, b = *sink;
  for (int64_t i = 0; i < n; ++i) sum += a * b;
  *sink = float(sum);
  return 2 * double(n);
}

}  // namespace

void fill(Kernels& k) {
  k.mr = k.nr = 1;
  k.pack_a = k.pack_b = pack;
  k.panels = panels;
  k.outer = outer;
  k.direct = direct;
  k.pass = pass;
  k.dots = dots;
  k.up = up;
  k.rmsnorm[kF32] = rmsnorm<float>;
  k.rmsnorm[kBf16] = rmsnorm<bf16>;
  k.rmsnorm_backward = rmsnorm_backward;
  k.rotate = rotate;
  k.widen = widen;
  k.swiglu[kF32] = swiglu<float>;
  k.swiglu[kBf16] = swiglu<bf16>;
  k.swiglu_backward[kF32] = swiglu_backward<float>;
  k.swiglu_backward[kBf16] = swiglu_backward<bf16>;
  k.softmax_row = softmax_row;
  k.round_rows = round_rows;
  k.softmax_row_backward = softmax_row_backward;
  k.logsumexp_row = logsumexp_row;
  k.head_gradient_row = head_gradient_row;
  k.adamw = adamw;
  k.axpy = axpy;
  k.squared_norm = squared_norm;
  k.multiply_adds = multiply_adds;
  fill_bilinear(k);
}

}  // namespace pluralign::isa_reference
