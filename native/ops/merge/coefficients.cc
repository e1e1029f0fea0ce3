// Methods whose result is a combination of the experts' updates: the coefficients, from inner products alone.
#include <algorithm>
#include <cmath>

#include "base/status.h"
#include "merge.h"

namespace pluralign {
namespace {

constexpr double kAligned = 0.9995;  // beyond it directions are interpolated along the chord

using Gram = std::vector<double>;  // [experts × experts]

// Inner products of the updates' rows, added up over rows [begin, end). A low-rank pair needs only A_i A_jᵀ.
class Products {
 public:
  explicit Products(const MergeTensor& t) : t_(t), n_(t.experts.size()), cross_(n_ * n_) {
    for (size_t i = 0; i < n_; ++i)
      for (size_t j = 0; j <= i; ++j) {
        const MergeExpert &x = t.experts[i], &y = t.experts[j];
        if (x.dense || y.dense) continue;
        auto& c = cross_[i * n_ + j];
        for (int64_t p = 0; p < x.r; ++p)
          for (int64_t q = 0; q < y.r; ++q) {
            double s = 0;
            for (int64_t k = 0; k < t.cols; ++k) s += double(x.a[p * t.cols + k]) * double(y.a[q * t.cols + k]);
            c.push_back(s * x.scale * y.scale);
          }
      }
  }

  Gram rows(int64_t begin, int64_t end) const {
    Gram g(n_ * n_, 0.0);
    std::vector<double> u(static_cast<size_t>(t_.cols)), v(static_cast<size_t>(t_.cols));
    for (int64_t row = begin; row < end; ++row)
      for (size_t i = 0; i < n_; ++i) {
        bool have = false;
        for (size_t j = 0; j <= i; ++j) {
          const MergeExpert &x = t_.experts[i], &y = t_.experts[j];
          double s = 0;
          if (!x.dense && !y.dense) {
            const double* c = cross_[i * n_ + j].data();
            for (int64_t p = 0; p < x.r; ++p)
              for (int64_t q = 0; q < y.r; ++q) s += double(x.b[row * x.r + p]) * double(y.b[row * y.r + q]) * c[p * y.r + q];
          } else {
            if (!have) update_row(x, row, u.data());
            have = true;
            update_row(y, row, v.data());
            for (int64_t k = 0; k < t_.cols; ++k) s += u[size_t(k)] * v[size_t(k)];
          }
          g[i * n_ + j] += s;
        }
      }
    for (size_t i = 0; i < n_; ++i)
      for (size_t j = i + 1; j < n_; ++j) g[i * n_ + j] = g[j * n_ + i];
    return g;
  }

 private:
  void update_row(const MergeExpert& e, int64_t row, double* out) const {
    for (int64_t k = 0; k < t_.cols; ++k) {
      if (e.dense) {
        out[k] = double(e.dense[row * t_.cols + k]) - (t_.base ? double(t_.base[row * t_.cols + k]) : 0.0);
        continue;
      }
      out[k] = 0;
      for (int64_t p = 0; p < e.r; ++p) out[k] += e.scale * double(e.b[row * e.r + p]) * double(e.a[p * t_.cols + k]);
    }
  }

  const MergeTensor& t_;
  size_t n_;
  std::vector<std::vector<double>> cross_;
};

double cosine(const Gram& g, size_t n, size_t i, size_t j) {
  const double norms = std::sqrt(g[i * n + i] * g[j * n + j]);
  return norms > 0 ? std::clamp(g[i * n + j] / norms, -1.0, 1.0) : 0.0;
}

// Shoemake 1985 between two updates at t; LERP where they are all but parallel or one of them is zero.
void slerp(const Gram& g, double t, double* first, double* second) {
  const double c = cosine(g, 2, 0, 1);
  if (std::abs(c) > kAligned || g[0] == 0 || g[3] == 0) {
    *first = 1 - t;
    *second = t;
    return;
  }
  const double angle = std::acos(c), sine = std::sin(angle);
  *first = std::sin((1 - t) * angle) / sine;
  *second = std::sin(t * angle) / sine;
}

// One step of the Karcher mean of the directions from the direction of their weighted mean, times the mean norm.
std::vector<double> multislerp(const Gram& g, const std::vector<double>& w) {
  const size_t n = w.size();
  std::vector<double> norm(n), unit(n), out(n);
  double mean_norm = 0, length = 0;
  for (size_t i = 0; i < n; ++i) {
    norm[i] = std::sqrt(g[i * n + i]);
    mean_norm += w[i] * norm[i];
  }
  // Directions u_i as combinations of the updates; m = Σ w u / |Σ w u|.
  const auto direction_product = [&](size_t i, size_t j) { return norm[i] > 0 && norm[j] > 0 ? g[i * n + j] / (norm[i] * norm[j]) : 0.0; };
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) length += w[i] * w[j] * direction_product(i, j);
  length = std::sqrt(std::max(0.0, length));
  if (length < 1e-12) return w;  // opposite directions cancel: no sphere to walk on
  std::vector<double> cosines(n, 0.0);
  bool aligned = true;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) cosines[i] += w[j] * direction_product(i, j) / length;
    cosines[i] = std::clamp(cosines[i], -1.0, 1.0);
    aligned = aligned && (w[i] == 0 || norm[i] == 0 || cosines[i] > kAligned);
  }
  if (aligned) return w;
  // v = Σ w log_m(u), log_m(u) = θ / sinθ (u - cosθ m).
  std::vector<double> m(n), v(n, 0.0);
  for (size_t i = 0; i < n; ++i) m[i] = w[i] / length;
  for (size_t i = 0; i < n; ++i) {
    if (norm[i] == 0) continue;
    const double angle = std::acos(cosines[i]), sine = std::sin(angle), f = w[i] * (sine > 1e-12 ? angle / sine : 1.0);
    v[i] += f;
    for (size_t j = 0; j < n; ++j) v[j] -= f * cosines[i] * m[j];
  }
  double size = 0;
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < n; ++j) size += v[i] * v[j] * direction_product(i, j);
  size = std::sqrt(std::max(0.0, size));
  const double along = size > 1e-15 ? std::sin(size) / size : 1.0;
  for (size_t i = 0; i < n; ++i) out[i] = norm[i] > 0 ? mean_norm * (std::cos(size) * m[i] + along * v[i]) / norm[i] : 0.0;
  return out;
}

double sum_of_weights(const MergeTensor& t) {
  double total = 0;
  for (const MergeExpert& e : t.experts) total += e.weight;
  if (total == 0 || !std::isfinite(total)) throw_error("BAD_ARGUMENT", "the weights add up to %g: this method divides by their sum", total);
  return total;
}

}  // namespace

bool is_linear(const MergeTensor& t) { return t.keep == Keep::all && t.combine != Combine::elect; }

std::vector<double> merge_coefficients(Pool& pool, const MergeTensor& t) {
  const size_t n = t.experts.size();
  const auto scaled = [&](std::vector<double> c) {
    for (double& x : c) x *= t.lambda;
    return c;
  };
  std::vector<double> w;
  for (const MergeExpert& e : t.experts) w.push_back(e.weight);
  if (t.combine == Combine::sum) return scaled(w);
  if (t.combine == Combine::stock) {
    const Gram g = Products(t).rows(0, t.rows);
    double mean = 0;
    for (size_t i = 0; i < n; ++i)
      for (size_t j = 0; j < i; ++j) mean += cosine(g, n, i, j) / (double(n) * double(n - 1) / 2);
    // Experts that point apart would send the formula past all bounds.
    const double size = double(n), below = 1 + (size - 1) * mean;
    const double ratio = n == 1 ? 1 : below <= 0 ? -1 : std::max(-1.0, size * mean / below);
    return scaled(std::vector<double>(n, ratio / size));
  }
  const double total = sum_of_weights(t);
  for (double& x : w) x /= total;
  if (t.combine == Combine::average) return scaled(w);
  if (t.combine == Combine::multislerp) return scaled(multislerp(Products(t).rows(0, t.rows), w));
  if (n != 2) throw_error("BAD_ARGUMENT", "slerp is between two experts, found %zu", n);
  const Products products(t);
  const int64_t groups = t.combine == Combine::nuslerp ? t.rows : 1;
  std::vector<double> c(size_t(2 * groups));
  pool.ranges(groups, 16, [&](int64_t i, int64_t end, int) {
    for (; i < end; ++i) slerp(products.rows(groups == 1 ? 0 : i, groups == 1 ? t.rows : i + 1), w[1], &c[size_t(i)], &c[size_t(groups + i)]);
  });
  return scaled(c);
}

}  // namespace pluralign
