// The specification: plain loops, sums in float64.
#include <vector>

#include "ops/bilinear/likelihood.h"
#include "ops/table.h"

namespace pluralign::isa_reference {
namespace {

using namespace bilinear;

int64_t row_of(const int32_t* rows, int64_t i) { return rows ? rows[i] : i; }

template <class T>
void project(const float* x, const int32_t* rows, int64_t from, int64_t to, int64_t d, const T* v, int64_t k, T* p, int64_t stride) {
  for (int64_t i = from; i < to; ++i)
    for (int64_t c = 0; c < k; ++c) {
      double sum = 0;
      for (int64_t j = 0; j < d; ++j) sum += double(x[row_of(rows, i) * d + j]) * double(v[c * d + j]);
      p[i * stride + c] = T(sum);
    }
}

template <class T>
void project_back(const float* x, const int32_t* rows, int64_t from, int64_t to, int64_t d, const T* dp, int64_t stride, int64_t k, T* dv) {
  for (int64_t c = 0; c < k; ++c)
    for (int64_t j = 0; j < d; ++j) {
      double sum = dv[c * d + j];
      for (int64_t i = from; i < to; ++i) sum += double(dp[i * stride + c]) * double(x[row_of(rows, i) * d + j]);
      dv[c * d + j] = T(sum);
    }
}

// Rewards of a vote's places, their slopes with respect to the loss (without weight), and the loss.
template <class T>
struct Vote {
  std::vector<double> rewards, tails, slopes;
  VoteRange range;
  double read(const Ballots& b, int64_t v, const T* points, const T* c, int64_t stride) {
    range = vote_range(b, v);
    rewards.assign(size_t(range.places), 0);
    tails.resize(rewards.size());
    slopes.resize(rewards.size());
    for (int64_t s = 0; s < range.places; ++s)
      for (int64_t a = 0; a < stride; ++a) rewards[size_t(s)] += double(points[int64_t(b.places[range.start + s]) * stride + a]) * double(c[a]);
    if (range.places != 2) return ranking_loss(rewards.data(), range.places, range.stages, tails.data(), slopes.data());
    const PairTerms terms = pair_terms(rewards[0] - rewards[1] - margin_of(b, v), b.tie, range.stages == 0);
    slopes[0] = terms.slope;
    slopes[1] = -terms.slope;
    return terms.loss;
  }
};

template <class T>
double votes(const Ballots& b, int64_t from, int64_t to, const T* points, const T* users, int64_t stride, T* d_points, T* d_users) {
  double loss = 0;
  Vote<T> vote;
  std::vector<double> gradient(size_t(stride), 0);
  for (int64_t u = from; u < to; ++u) {
    const T* c = users + row_of_voter(b, u) * stride;
    gradient.assign(size_t(stride), 0);
    for (int64_t v = b.voter_start[u]; v < b.voter_start[u + 1]; ++v) {
      const double w = weight_of(b, v);
      loss += w * vote.read(b, v, points, c, stride);
      if (!d_points) continue;
      for (int64_t s = 0; s < vote.range.places; ++s) {
        const int64_t at = int64_t(b.places[vote.range.start + s]) * stride;
        for (int64_t a = 0; a < stride; ++a) {
          gradient[size_t(a)] += w * vote.slopes[size_t(s)] * double(points[at + a]);
          d_points[at + a] = T(double(d_points[at + a]) + w * vote.slopes[size_t(s)] * double(c[a]));
        }
      }
    }
    if (d_users)
      for (int64_t a = 0; a < stride; ++a) d_users[u * stride + a] = T(gradient[size_t(a)]);
  }
  return loss;
}

template <class T>
double curvature(const Ballots& b, int64_t voter, const T* points, const T* c, int64_t stride, int64_t k, T* gradient, T* hessian) {
  double loss = 0;
  Vote<T> vote;
  std::vector<double> g(size_t(stride), 0), h(size_t(k * stride), 0), mean(size_t(stride), 0);
  for (int64_t v = b.voter_start[voter]; v < b.voter_start[voter + 1]; ++v) {
    const double w = weight_of(b, v);
    loss += w * vote.read(b, v, points, c, stride);
    const VoteRange& r = vote.range;
    const auto point = [&](int64_t s, int64_t a) { return double(points[int64_t(b.places[r.start + s]) * stride + a]); };
    for (int64_t s = 0; s < r.places; ++s)
      for (int64_t a = 0; a < stride; ++a) g[size_t(a)] += w * vote.slopes[size_t(s)] * point(s, a);
    if (r.places == 2) {
      const double f = w * pair_terms(vote.rewards[0] - vote.rewards[1] - margin_of(b, v), b.tie, r.stages == 0).curvature;
      for (int64_t a = 0; a < k; ++a)
        for (int64_t e = 0; e < stride; ++e) h[size_t(a * stride + e)] += f * (point(0, a) - point(1, a)) * (point(0, e) - point(1, e));
      continue;
    }
    // Each stage adds the covariance of the points under its choice probabilities.
    for (int64_t stage = 0; stage < r.stages; ++stage) {
      mean.assign(size_t(stride), 0);
      const auto p = [&](int64_t s) { return std::exp(vote.rewards[size_t(s)] - vote.tails[size_t(stage)]); };
      for (int64_t s = stage; s < r.places; ++s)
        for (int64_t a = 0; a < stride; ++a) mean[size_t(a)] += p(s) * point(s, a);
      for (int64_t s = stage; s < r.places; ++s)
        for (int64_t a = 0; a < k; ++a)
          for (int64_t e = 0; e < stride; ++e)
            h[size_t(a * stride + e)] += w * p(s) * (point(s, a) - mean[size_t(a)]) * (point(s, e) - mean[size_t(e)]);
    }
  }
  for (size_t i = 0; i < g.size(); ++i) gradient[i] = T(g[i]);
  for (size_t i = 0; i < h.size(); ++i) hessian[i] = T(h[i]);
  return loss;
}

template <class T>
BilinearKernels<T> kernels() {
  return {project<T>, project_back<T>, votes<T>, curvature<T>};
}

}  // namespace

void fill_bilinear(Kernels& k) {
  k.bilinear_f32 = kernels<float>();
  k.bilinear_f64 = kernels<double>();
}

}  // namespace pluralign::isa_reference
