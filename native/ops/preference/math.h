// Scalar functions that stay finite for arguments of ±1e4 and more, and hand NaN on.
#pragma once
#include <cmath>
#include <cstdint>

namespace pluralign::preference {

inline double sigmoid(double x) {
  if (x >= 0) return 1 / (1 + std::exp(-x));
  const double e = std::exp(x);
  return e / (1 + e);
}

inline double log_sigmoid(double x) { return x >= 0 ? -std::log1p(std::exp(-x)) : x - std::log1p(std::exp(x)); }

// max(0, x) that keeps NaN, which std::max and std::fmax do not.
inline double relu(double x) { return x <= 0 ? 0 : x; }

// log(exp(a) + exp(b)); either may be -infinity.
inline double log_add(double a, double b) {
  if (std::isnan(a) || std::isnan(b)) return a + b;
  const double hi = a > b ? a : b, lo = a > b ? b : a;
  return std::isinf(hi) && hi < 0 ? hi : hi + std::log1p(std::exp(lo - hi));
}

// exp with its argument cut at 80, where TRL cuts its alpha divergence; `slope` is the derivative (0 beyond the cut).
inline double cut_exp(double x, double* slope) {
  constexpr double limit = 80;
  if (x > limit) {
    *slope = 0;
    return std::exp(limit);
  }
  return *slope = std::exp(x);
}

inline double weight_at(const double* weights, int64_t i) { return weights ? weights[i] : 1; }

// The divisor of the weighted sum of row losses: `given`, or where that is 0 the sum of the weights.
inline double normaliser_or_sum(double given, const double* weights, int64_t n) {
  if (given != 0) return given;
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += weight_at(weights, i);
  return sum;
}

// 1 / x, or 0 where nothing has weight: the loss and gradient of no rows are 0.
inline double inverse_or_zero(double x) { return x == 0 ? 0 : 1 / x; }

}  // namespace pluralign::preference
