// Low-rank rewards over many voters: r_ui = P_i · c_u with P = X Vᵀ, X [n × d] frozen features, V [k × d] shared, c_u [k] the
// voter's. Items are projected once, so that a vote costs k products however many features there are. A column of V whose
// coordinate is held at 1 is a reward that all share. Bradley–Terry (1952) for pairs, Plackett–Luce for rankings,
// Davidson (1970) where pairs tie. Results depend on the data alone, not on the number of threads.
#pragma once
#include "ops/table.h"

namespace pluralign {

// Rows are padded to whole cache lines.
template <class T>
constexpr int64_t bilinear_stride(int64_t k) {
  constexpr int64_t line = 64 / int64_t(sizeof(T));
  return (k + line - 1) / line * line;
}

// p [count × stride]; columns [k, stride) become zero. rows null: count rows in order.
template <class T>
void bilinear_project(Context& context, const float* x, const int32_t* rows, int64_t count, int64_t d, const T* v, int64_t k, T* p, int64_t stride);

// dv [k × d], overwritten.
template <class T>
void bilinear_project_back(Context& context, const float* x, const int32_t* rows, int64_t count, int64_t d, const T* dp, int64_t stride, int64_t k, T* dv);

// Weighted sum of minus the log-likelihoods. d_points [n × stride] and d_users [voters × stride] are overwritten; null, both
// or neither: the loss alone.
template <class T>
double bilinear_loss(Context& context, const Ballots& ballots, int64_t n, const T* points, const T* users, int64_t stride, T* d_points, T* d_users);

struct BilinearNewton {
  double l2 = 1;            // precision of the prior on each free coordinate
  double tolerance = 1e-14; // ends where twice what can still be gained is below tolerance · (1 + |value|)
  int max_steps = 100;
};

// Minimises every voter's loss + l2/2 ‖z‖² over the first `free` coordinates of their row of users [voters × stride], from
// where it stands; the others stay. factors [voters × free × free] or null: lower Cholesky factor of the Hessian there, the
// precision of the Laplace posterior. Returns the most steps that a voter took; −1 where a Hessian was singular.
int bilinear_newton(Context& context, const Ballots& ballots, const double* points, double* users, int64_t stride, int64_t free,
                    const BilinearNewton& options, double* factors);

// One Adam step (Kingma and Ba 2015) of some rows of parameters [· × stride], each with its own step count, which advances.
// gradient [count × stride] has l2 · share · parameters added, share [count] or null: 1. Columns from `free` on stay.
struct AdamRows {
  float *parameters, *m, *v;
  int32_t* steps;
  int64_t stride, free;
  const int32_t* rows;
  int64_t count;
  const float *gradient, *share;
  float l2, gradient_scale;
  double learning_rate, beta1, beta2, eps;
};
void bilinear_adam(Context& context, const AdamRows& a);

}  // namespace pluralign
