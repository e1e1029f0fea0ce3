#include "linalg.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/status.h"

namespace pluralign {

void multiply(Pool& pool, double* c, const double* a, const double* b, int64_t m, int64_t k, int64_t n) {
  pool.ranges(m, 8, [&](int64_t i, int64_t end, int) {
    for (; i < end; ++i) {
      double* row = c + i * n;
      std::fill(row, row + n, 0.0);
      for (int64_t p = 0; p < k; ++p) {
        const double f = a[i * k + p];
        const double* from = b + p * n;
        for (int64_t j = 0; j < n; ++j) row[j] += f * from[j];
      }
    }
  });
}

void multiply_transposed(Pool& pool, double* c, const double* a, const double* b, int64_t m, int64_t k, int64_t n) {
  pool.ranges(m, 8, [&](int64_t begin, int64_t end, int) {
    std::fill(c + begin * n, c + end * n, 0.0);
    // Rows of B are read once for a few rows of C.
    for (int64_t i0 = begin; i0 < end; i0 += 4) {
      const int64_t i1 = std::min(end, i0 + 4);
      for (int64_t p = 0; p < k; ++p)
        for (int64_t i = i0; i < i1; ++i) {
          const double f = a[p * m + i];
          double* row = c + i * n;
          const double* from = b + p * n;
          for (int64_t j = 0; j < n; ++j) row[j] += f * from[j];
        }
    }
  });
}

namespace {

double dot(const double* x, const double* y, int64_t n) {
  double lanes[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int l = 0; l < 4; ++l) lanes[l] += x[i + l] * y[i + l];
  for (; i < n; ++i) lanes[0] += x[i] * y[i];
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

void axpy(double* y, const double* x, double f, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += f * x[i];
}

// s ← tridiagonal with diagonal d and subdiagonal e (e[i] between i and i + 1). The reflectors stay in s: row k holds that
// of step k in columns [k + 1, n), scaled so that H = I - v vᵀ.
void tridiagonal(double* s, int64_t n, double* d, double* e, const Cancel& cancel) {
  std::vector<double> p(static_cast<size_t>(n));
  for (int64_t k = 0; k + 2 < n; ++k) {
    if (k % 64 == 0) cancel.check();
    double* v = s + k * n + k + 1;
    const int64_t m = n - k - 1;
    const double norm = std::sqrt(dot(v, v, m));
    if (norm == 0) {
      e[k] = 0;
      continue;
    }
    const double alpha = v[0] > 0 ? -norm : norm;
    e[k] = alpha;
    v[0] -= alpha;
    const double scale = std::sqrt(2 / dot(v, v, m));
    for (int64_t i = 0; i < m; ++i) v[i] *= scale;
    // Rest ← H Rest H = Rest - v wᵀ - w vᵀ with w = p - (pᵀv / 2) v, p = Rest v. Only the upper triangle is kept.
    std::fill(p.begin(), p.begin() + m, 0.0);
    for (int64_t i = 0; i < m; ++i) {
      const double* row = s + (k + 1 + i) * n + k + 1;
      p[size_t(i)] += dot(row + i, v + i, m - i);
      axpy(p.data() + i + 1, row + i + 1, v[i], m - i - 1);
    }
    axpy(p.data(), v, -dot(p.data(), v, m) / 2, m);
    for (int64_t i = 0; i < m; ++i) {
      double* row = s + (k + 1 + i) * n + k + 1;
      const double vi = v[i], wi = p[size_t(i)];
      for (int64_t j = i; j < m; ++j) row[j] -= vi * p[size_t(j)] + wi * v[j];
    }
  }
  for (int64_t i = 0; i < n; ++i) d[i] = s[i * n + i];
  if (n > 1) e[n - 2] = s[(n - 2) * n + n - 1];
}

// Implicit QL with Wilkinson shifts; rotations act on rows of `vectors`.
void implicit_ql(double* d, double* e, double* vectors, int64_t n, const Cancel& cancel) {
  double largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max({largest, std::abs(d[i]), std::abs(e[i])});
  for (int64_t l = 0; l < n; ++l) {
    cancel.check();
    for (int rounds = 0;; ++rounds) {
      int64_t m = l;
      for (; m + 1 < n; ++m)
        if (std::abs(e[m]) <= std::max(2e-16 * (std::abs(d[m]) + std::abs(d[m + 1])), 1e-18 * largest)) break;
      if (m == l) break;
      if (rounds == 200) throw_error("NON_FINITE", "the eigenvalues of a %lld x %lld matrix did not converge: has it values that are not finite?", (long long)n, (long long)n);
      double g = (d[l + 1] - d[l]) / (2 * e[l]), r = std::hypot(g, 1.0);
      g = d[m] - d[l] + e[l] / (g + std::copysign(r, g));
      double sine = 1, cosine = 1, p = 0;
      int64_t i = m - 1;
      for (; i >= l; --i) {
        double f = sine * e[i];
        const double b = cosine * e[i];
        r = std::hypot(f, g);
        e[i + 1] = r;
        if (r == 0) {
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        sine = f / r;
        cosine = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * sine + 2 * cosine * b;
        p = sine * r;
        d[i + 1] = g + p;
        g = cosine * r - b;
        double *x = vectors + i * n, *y = x + n;
        for (int64_t j = 0; j < n; ++j) {
          f = y[j];
          y[j] = sine * x[j] + cosine * f;
          x[j] = cosine * x[j] - sine * f;
        }
      }
      if (r == 0 && i >= l) continue;
      d[l] -= p;
      e[l] = g;
      e[m] = 0;
    }
  }
}

}  // namespace

void eigen_symmetric(double* s, int64_t n, double* values, double* vectors, const Cancel& cancel) {
  if (n == 0) return;
  std::vector<double> d(static_cast<size_t>(n)), e(static_cast<size_t>(n), 0.0), q(static_cast<size_t>(n * n), 0.0);
  tridiagonal(s, n, d.data(), e.data(), cancel);
  for (int64_t i = 0; i < n; ++i) q[size_t(i * n + i)] = 1;
  implicit_ql(d.data(), e.data(), q.data(), n, cancel);
  // S = Q T Qᵀ with Q = H₀ H₁ …, so a vector z of T becomes Q z: the last reflector first.
  for (int64_t i = 0; i < n; ++i) {
    double* row = q.data() + i * n;
    for (int64_t k = n - 3; k >= 0; --k) {
      const double* v = s + k * n + k + 1;
      const int64_t m = n - k - 1;
      axpy(row + k + 1, v, -dot(row + k + 1, v, m), m);
    }
  }
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return d[size_t(a)] != d[size_t(b)] ? d[size_t(a)] > d[size_t(b)] : a < b; });
  for (int64_t i = 0; i < n; ++i) {
    values[i] = d[size_t(order[size_t(i)])];
    const double* from = q.data() + order[size_t(i)] * n;
    std::copy(from, from + n, vectors + i * n);
  }
}

int64_t orthonormal(const double* x, int64_t n, int64_t k, std::vector<double>& q, std::vector<double>& r) {
  q.clear();
  r.clear();
  int64_t rank = 0;
  std::vector<double> column(static_cast<size_t>(n));
  for (int64_t j = 0; j < k; ++j) {
    for (int64_t i = 0; i < n; ++i) column[size_t(i)] = x[i * k + j];
    const double before = std::sqrt(dot(column.data(), column.data(), n));
    for (int pass = 0; pass < 2; ++pass)
      for (int64_t i = 0; i < rank; ++i) {
        const double c = dot(q.data() + i * n, column.data(), n);
        axpy(column.data(), q.data() + i * n, -c, n);
        r[size_t(i * k + j)] += c;
      }
    const double after = std::sqrt(dot(column.data(), column.data(), n));
    if (rank == n || !(after > 1e-14 * before)) continue;
    q.insert(q.end(), column.begin(), column.end());
    for (int64_t i = 0; i < n; ++i) q[size_t(rank * n + i)] /= after;
    r.resize(r.size() + size_t(k), 0.0);
    r[size_t(rank * k + j)] = after;
    ++rank;
  }
  return rank;
}

}  // namespace pluralign
