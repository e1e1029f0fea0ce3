// What an instruction set implements for rewards that are linear in projected items; see bilinear.h.
#pragma once
#include <cstdint>

namespace pluralign {

// Votes grouped by voter. A vote's places stand best first, those that were not ranked last.
struct Ballots {
  int64_t voters = 0, votes = 0;
  const int32_t* voter_start = nullptr;  // [voters + 1] into the votes
  const int32_t* vote_start = nullptr;   // [votes + 1] into the places; null: all are pairs, vote v at 2 v
  const int32_t* places = nullptr;       // rows of the points
  const int32_t* stages = nullptr;       // [votes] choices made one after another; 0 on a pair: a tie; null: 1 each
  const double* weights = nullptr;       // [votes], or null
  const double* margins = nullptr;       // [votes], of pairs, or null
  const int32_t* voter_rows = nullptr;   // [voters] rows of the users; null: in order
  double tie = 0;                        // Davidson's nu; 0: ties say nothing
};

// T is float or double. `stride`: elements from one row of points, users and their gradients to the next, whole vectors,
// zero beyond the columns that count.
template <class T>
struct BilinearKernels {
  // p[i][c] = Σ_j x[row(i)][j] v[c][j], i in [from, to), row(i) = rows[i], or i where rows is null. v [k × d].
  void (*project)(const float* x, const int32_t* rows, int64_t from, int64_t to, int64_t d, const T* v, int64_t k, T* p, int64_t stride) = nullptr;
  // dv[c][j] += Σ_i dp[i][c] x[row(i)][j], i in [from, to).
  void (*project_back)(const float* x, const int32_t* rows, int64_t from, int64_t to, int64_t d, const T* dp, int64_t stride, int64_t k, T* dv) = nullptr;
  // Loss of the votes of voters [from, to); adds to d_points and overwrites rows [from, to) of
  // d_users (both null: loss alone).
  double (*votes)(const Ballots& b, int64_t from, int64_t to, const T* points, const T* users, int64_t stride, T* d_points, T* d_users) = nullptr;
  // Loss of one voter's votes at coordinates c [stride], its gradient [stride] and Hessian [k × stride], overwritten.
  double (*curvature)(const Ballots& b, int64_t voter, const T* points, const T* c, int64_t stride, int64_t k, T* gradient, T* hessian) = nullptr;
};

}  // namespace pluralign
