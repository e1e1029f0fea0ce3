#include "rope.h"

#include <algorithm>
#include <cmath>

namespace pluralign {
namespace {

template <class T>
void read(float* dst, const T* src, int64_t n) {
  for (int64_t i = 0; i < n; ++i) dst[i] = to_float(src[i]);
}

float head_rstd(const float* x, int64_t n, float eps) {
  double squares = 0;
  for (int64_t i = 0; i < n; ++i) squares += double(x[i]) * x[i];
  return float(1.0 / std::sqrt(squares / double(n) + eps));
}

void rotate_back(float* d, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = d[i], b = d[half + i];
    d[i] = a * cos[i] + b * sin[i];
    d[half + i] = b * cos[i] - a * sin[i];
  }
}

// d ← gradient of x, given d = gradient of x · rstd · weight.
void norm_back(float* d, const float* x, const float* weight, float rstd, int64_t n) {
  double dot = 0;
  for (int64_t i = 0; i < n; ++i) dot += double(d[i]) * weight[i] * x[i];
  const float shift = float(dot / double(n)) * rstd * rstd * rstd;
  for (int64_t i = 0; i < n; ++i) d[i] = d[i] * weight[i] * rstd - x[i] * shift;
}

template <class T>
void forward(const Kernels& kernels, const RopeShape& s, const RopeView& table, float* out, const T* raw, const int32_t* positions, int64_t r0, int64_t r1) {
  const int64_t width = (s.heads + 2 * s.kv_heads) * s.head_dim, half = s.head_dim / 2, turned = s.heads + s.kv_heads;
  for (int64_t r = r0; r < r1; ++r) {
    float* row = out + r * width;
    if constexpr (sizeof(T) == 2) kernels.widen(row, raw + r * width, width);
    else std::copy_n(raw + r * width, width, row);
    for (int64_t h = 0; h < turned; ++h)
      if (const float* weight = h < s.heads ? s.q_norm : s.k_norm) {
        float* x = row + h * s.head_dim;
        const float rstd = head_rstd(x, s.head_dim, s.eps);
        for (int64_t i = 0; i < s.head_dim; ++i) x[i] = x[i] * rstd * weight[i];
      }
    kernels.rotate(row, table.cos(positions[r]), table.sin(positions[r]), half, turned, false);
  }
}

template <class T>
void backward(const Kernels& kernels, const RopeShape& s, const RopeView& table, float* d, const T* raw, const int32_t* positions, int64_t r0, int64_t r1) {
  const int64_t width = (s.heads + 2 * s.kv_heads) * s.head_dim, half = s.head_dim / 2, turned = s.heads + s.kv_heads;
  std::vector<float> x(size_t(s.head_dim));
  for (int64_t r = r0; r < r1; ++r) {
    kernels.rotate(d + r * width, table.cos(positions[r]), table.sin(positions[r]), half, turned, true);
    for (int64_t h = 0; h < turned; ++h)
      if (const float* weight = h < s.heads ? s.q_norm : s.k_norm) {
        read(x.data(), raw + r * width + h * s.head_dim, s.head_dim);
        norm_back(d + r * width + h * s.head_dim, x.data(), weight, head_rstd(x.data(), s.head_dim, s.eps), s.head_dim);
      }
  }
}

// Before the rotation is undone d is the gradient after it, so the weights' part goes first, on a copy of each head.
template <class T>
void weights(const RopeShape& s, const RopeView& table, const float* d, const T* raw, const int32_t* positions, int64_t rows, float* dq, float* dk) {
  const int64_t width = (s.heads + 2 * s.kv_heads) * s.head_dim, n = s.head_dim;
  std::vector<float> x(static_cast<size_t>(n)), g(static_cast<size_t>(n));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t h = 0; h < s.heads + s.kv_heads; ++h) {
      float* into = h < s.heads ? dq : dk;
      if (!into) continue;
      read(g.data(), d + r * width + h * n, n);
      rotate_back(g.data(), table.cos(positions[r]), table.sin(positions[r]), n / 2);
      read(x.data(), raw + r * width + h * n, n);
      const float rstd = head_rstd(x.data(), n, s.eps);
      for (int64_t i = 0; i < n; ++i) into[i] += g[size_t(i)] * x[size_t(i)] * rstd;
    }
}

}  // namespace

bool RopeTable::reserve(int64_t positions, const double* inverse_frequencies, int64_t half, double factor) {
  if (positions <= positions_ && half == half_) return false;
  const int64_t known = half == half_ ? positions_ : 0;
  half_ = half;
  positions_ = std::max(positions, 2 * known);  // who writes asks for one more each time
  values_.resize(size_t(positions_ * 2 * half));
  for (int64_t p = known; p < positions_; ++p)
    for (int64_t i = 0; i < half; ++i) {
      const float angle = float(inverse_frequencies[i]) * float(p);
      values_[size_t(p * 2 * half + i)] = float(std::cos(double(angle)) * factor);
      values_[size_t(p * 2 * half + half + i)] = float(std::sin(double(angle)) * factor);
    }
  return true;
}

void rope(Context& context, const RopeShape& shape, const RopeView& table, int storage, float* out, const void* raw, const int32_t* positions, int64_t rows) {
  context.pool.ranges(rows, 16, [&](int64_t r0, int64_t r1, int) {
    if (storage == kF32) forward(context.kernels, shape, table, out, static_cast<const float*>(raw), positions, r0, r1);
    else forward(context.kernels, shape, table, out, static_cast<const bf16*>(raw), positions, r0, r1);
  });
}

void rope_backward(Context& context, const RopeShape& shape, const RopeView& table, int storage, float* d, const void* raw,
                   const int32_t* positions, int64_t rows, float* dq_norm, float* dk_norm) {
  if (dq_norm || dk_norm) {
    if (storage == kF32) weights(shape, table, d, static_cast<const float*>(raw), positions, rows, dq_norm, dk_norm);
    else weights(shape, table, d, static_cast<const bf16*>(raw), positions, rows, dq_norm, dk_norm);
  }
  context.pool.ranges(rows, 16, [&](int64_t r0, int64_t r1, int) {
    if (storage == kF32) backward(context.kernels, shape, table, d, static_cast<const float*>(raw), positions, r0, r1);
    else backward(context.kernels, shape, table, d, static_cast<const bf16*>(raw), positions, r0, r1);
  });
}

}  // namespace pluralign
