// Newton's method for every voter's coordinates: convex problems of a few unknowns, one after another on each thread.
#include <atomic>
#include <cmath>

#include "bilinear.h"

namespace pluralign {
namespace {

// Lower Cholesky factor of the leading k × k of a [· × stride], in place; false where it is not positive definite.
bool cholesky(double* a, int64_t k, int64_t stride) {
  for (int64_t j = 0; j < k; ++j) {
    double diagonal = a[j * stride + j];
    for (int64_t p = 0; p < j; ++p) diagonal -= a[j * stride + p] * a[j * stride + p];
    if (!(diagonal > 0)) return false;
    const double root = a[j * stride + j] = std::sqrt(diagonal);
    for (int64_t i = j + 1; i < k; ++i) {
      double sum = a[i * stride + j];
      for (int64_t p = 0; p < j; ++p) sum -= a[i * stride + p] * a[j * stride + p];
      a[i * stride + j] = sum / root;
    }
  }
  return true;
}

void solve(const double* l, int64_t k, int64_t stride, double* b) {
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t p = 0; p < i; ++p) b[i] -= l[i * stride + p] * b[p];
    b[i] /= l[i * stride + i];
  }
  for (int64_t i = k; i-- > 0;) {
    for (int64_t p = i + 1; p < k; ++p) b[i] -= l[p * stride + i] * b[p];
    b[i] /= l[i * stride + i];
  }
}

// One voter at a time; the memory is the thread's.
struct VoterFit {
  const Ballots& ballots;
  const BilinearKernels<double>& kernels;
  const double* points;
  int64_t stride, k;
  const BilinearNewton& options;
  double *gradient, *hessian, *step, *trial;

  double evaluate(int64_t u, const double* c) const {
    double value = kernels.curvature(ballots, u, points, c, stride, k, gradient, hessian);
    for (int64_t a = 0; a < k; ++a) {
      value += 0.5 * options.l2 * c[a] * c[a];
      gradient[a] += options.l2 * c[a];
      hessian[a * stride + a] += options.l2;
    }
    return value;
  }

  // Steps taken, or −1.
  int run(int64_t u, double* c) const {
    double value = evaluate(u, c);
    for (int taken = 0;; ++taken) {
      if (!cholesky(hessian, k, stride)) return -1;
      std::copy(gradient, gradient + k, step);
      solve(hessian, k, stride, step);
      double decrement = 0;
      for (int64_t a = 0; a < k; ++a) decrement += step[a] * gradient[a];
      if (!(decrement > options.tolerance * (1 + std::abs(value))) || taken >= options.max_steps) return taken;
      std::copy(c, c + stride, trial);
      double next = value, length = 1;
      for (int attempt = 0; attempt < 40; ++attempt, length /= 2) {
        for (int64_t a = 0; a < k; ++a) trial[a] = c[a] - length * step[a];
        next = evaluate(u, trial);
        if (next <= value - 1e-4 * length * decrement) break;
      }
      if (!(next < value)) {  // as good as rounding allows: leave the factor of where it stands
        evaluate(u, c);
        return cholesky(hessian, k, stride) ? taken : -1;
      }
      std::copy(trial, trial + k, c);
      value = next;
    }
  }
};

}  // namespace

int bilinear_newton(Context& context, const Ballots& b, const double* points, double* users, int64_t stride, int64_t free,
                    const BilinearNewton& options, double* factors) {
  std::atomic<int> longest{0};
  std::atomic<bool> singular{false};
  context.pool.ranges(b.voters, 4, [&](int64_t from, int64_t to, int thread) {
    double* memory = context.local[size_t(thread)].slot[0].as<double>((free + 3) * stride);
    const VoterFit fit{b, context.kernels.bilinear_f64, points, stride, free, options, memory, memory + 3 * stride, memory + stride, memory + 2 * stride};
    for (int64_t u = from; u < to; ++u) {
      const int taken = fit.run(u, users + u * stride);
      if (taken < 0) singular = true;
      for (int seen = longest; taken > seen && !longest.compare_exchange_weak(seen, taken);) {}
      if (!factors) continue;
      for (int64_t i = 0; i < free; ++i)
        for (int64_t j = 0; j < free; ++j) factors[(u * free + i) * free + j] = j <= i ? fit.hessian[i * stride + j] : 0;
    }
  });
  return singular ? -1 : longest.load();
}

}  // namespace pluralign
