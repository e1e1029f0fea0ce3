#include "bilinear.h"

#include <algorithm>

#include "ops/adamw/adamw.h"

namespace pluralign {
namespace {

template <class T>
const BilinearKernels<T>& kernels_for(const Context& context) {
  if constexpr (sizeof(T) == 4) return context.kernels.bilinear_f32;
  else return context.kernels.bilinear_f64;
}

// Sums over rows and votes are cut into a number of parts that the data decides, each with a buffer of its own, and added
// in order: the result does not depend on the threads.
constexpr int64_t kParts = 16;

template <class T>
void add_parts(Context& context, const T* parts, int64_t count, int64_t size, T* out) {
  context.pool.ranges(size, 4096, [&](int64_t from, int64_t to, int) {
    std::copy(parts + from, parts + to, out + from);
    for (int64_t p = 1; p < count; ++p)
      for (int64_t i = from; i < to; ++i) out[i] += parts[p * size + i];
  });
}

}  // namespace

template <class T>
void bilinear_project(Context& context, const float* x, const int32_t* rows, int64_t count, int64_t d, const T* v, int64_t k, T* p, int64_t stride) {
  context.pool.ranges(count, 64, [&](int64_t from, int64_t to, int) {
    kernels_for<T>(context).project(x, rows, from, to, d, v, k, p, stride);
    for (int64_t i = from; i < to; ++i) std::fill(p + i * stride + k, p + (i + 1) * stride, T(0));
  });
}

template <class T>
void bilinear_project_back(Context& context, const float* x, const int32_t* rows, int64_t count, int64_t d, const T* dp, int64_t stride, int64_t k, T* dv) {
  const int64_t size = k * d, parts = std::clamp<int64_t>(count / 128, 1, kParts);
  T* sums = parts == 1 ? dv : static_cast<T*>(context.head.get(size_t(parts * size) * sizeof(T)));
  context.pool.run(parts, [&](int64_t part, int) {
    T* own = sums + part * size;
    std::fill(own, own + size, T(0));
    kernels_for<T>(context).project_back(x, rows, count * part / parts, count * (part + 1) / parts, d, dp, stride, k, own);
  });
  if (parts > 1) add_parts(context, sums, parts, size, dv);
}

template <class T>
double bilinear_loss(Context& context, const Ballots& b, int64_t n, const T* points, const T* users, int64_t stride, T* d_points, T* d_users) {
  const int64_t size = n * stride;
  // A part must have enough votes to pay for its own buffer of every item.
  const int64_t parts = d_points ? std::clamp<int64_t>(2 * b.votes / std::max<int64_t>(1, n), 1, kParts) : kParts;
  std::vector<int64_t> cuts{0};
  for (int64_t p = 1; p <= parts; ++p) {
    const int32_t* at = std::lower_bound(b.voter_start, b.voter_start + b.voters, int32_t(b.votes * p / parts));
    cuts.push_back(p == parts ? b.voters : std::max<int64_t>(cuts.back(), at - b.voter_start));
  }
  T* sums = !d_points ? nullptr : parts == 1 ? d_points : static_cast<T*>(context.head.get(size_t(parts * size) * sizeof(T)));
  std::vector<double> losses(static_cast<size_t>(parts));
  context.pool.run(parts, [&](int64_t part, int) {
    T* own = sums ? sums + part * size : nullptr;
    if (own) std::fill(own, own + size, T(0));
    losses[size_t(part)] = kernels_for<T>(context).votes(b, cuts[size_t(part)], cuts[size_t(part) + 1], points, users, stride, own, d_users);
  });
  if (sums && parts > 1) add_parts(context, sums, parts, size, d_points);
  double loss = 0;
  for (double part : losses) loss += part;
  return loss;
}

#define PLURALIGN_BILINEAR(T)                                                                                                              \
  template void bilinear_project<T>(Context&, const float*, const int32_t*, int64_t, int64_t, const T*, int64_t, T*, int64_t);             \
  template void bilinear_project_back<T>(Context&, const float*, const int32_t*, int64_t, int64_t, const T*, int64_t, int64_t, T*);        \
  template double bilinear_loss<T>(Context&, const Ballots&, int64_t, const T*, const T*, int64_t, T*, T*);
PLURALIGN_BILINEAR(float)
PLURALIGN_BILINEAR(double)
#undef PLURALIGN_BILINEAR

void bilinear_adam(Context& context, const AdamRows& a) {
  int32_t longest = 0;
  for (int64_t i = 0; i < a.count; ++i) longest = std::max(longest, ++a.steps[a.rows[i]]);
  std::vector<AdamWStep> steps;
  for (int32_t t = 1; t <= longest; ++t) steps.push_back(adamw_step(a.learning_rate, a.beta1, a.beta2, a.eps, 0, 1, t));
  context.pool.ranges(a.count, 256, [&](int64_t from, int64_t to, int thread) {
    float* g = context.local[size_t(thread)].slot[0].as<float>(a.stride);
    for (int64_t i = from; i < to; ++i) {
      const int64_t at = int64_t(a.rows[i]) * a.stride;
      const float prior = a.l2 * (a.share ? a.share[i] : 1.f);
      std::fill(g + a.free, g + a.stride, 0.f);
      for (int64_t c = 0; c < a.free; ++c) g[c] = a.gradient_scale * a.gradient[i * a.stride + c] + prior * a.parameters[at + c];
      context.kernels.adamw(a.parameters + at, g, a.m + at, a.v + at, a.stride, steps[size_t(a.steps[a.rows[i]] - 1)]);
    }
  });
}

}  // namespace pluralign
