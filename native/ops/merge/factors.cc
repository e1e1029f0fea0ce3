// Low-rank updates: merged without forming them, and the best approximation of a rank.
#include <algorithm>
#include <cmath>

#include "linalg.h"
#include "merge.h"

namespace pluralign {
namespace {

double squared(const std::vector<double>& x) {
  double s = 0;
  for (double v : x) s += v * v;
  return s;
}

// Writes Σ_j left_j right_jᵀ over the first `rank` rows of left [· × rows] and right [· × cols] as balanced factors: both
// get the root of |right_j| (left rows are of unit length), which keeps float32 rounding alike in both.
void store(MergeFactors& f, const std::vector<double>& left, const std::vector<double>& right, int64_t rank, int64_t rows, int64_t cols) {
  f.rank = std::max<int64_t>(1, rank);  // files have no factors of rank 0: nothing is one of zeros
  f.a.assign(size_t(f.rank * cols), 0.f);
  f.b.assign(size_t(rows * f.rank), 0.f);
  for (int64_t j = 0; j < rank; ++j) {
    double s = 0;
    for (int64_t i = 0; i < cols; ++i) s += right[size_t(j * cols + i)] * right[size_t(j * cols + i)];
    const double root = std::sqrt(std::sqrt(s));
    if (root == 0) continue;
    for (int64_t i = 0; i < cols; ++i) f.a[size_t(j * cols + i)] = float(right[size_t(j * cols + i)] / root);
    for (int64_t i = 0; i < rows; ++i) f.b[size_t(i * rank + j)] = float(left[size_t(j * rows + i)] * root);
  }
}

// Left singular vectors of m [rows × cols] as rows of u, largest singular value first.
void left_vectors(Pool& pool, const std::vector<double>& m, int64_t rows, int64_t cols, std::vector<double>& u, const Cancel& cancel) {
  std::vector<double> turned(static_cast<size_t>(rows * cols)), gram(static_cast<size_t>(rows * rows)), values(static_cast<size_t>(rows));
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; ++j) turned[size_t(j * rows + i)] = m[size_t(i * cols + j)];
  multiply_transposed(pool, gram.data(), turned.data(), turned.data(), rows, cols, rows);
  u.resize(size_t(rows * rows));
  eigen_symmetric(gram.data(), rows, values.data(), u.data(), cancel);
}

}  // namespace

MergeFactors best_rank(Pool& pool, const double* update, int64_t rows, int64_t cols, int64_t rank, const Cancel& cancel) {
  MergeFactors f;
  std::vector<double> m(update, update + rows * cols);
  f.norm = std::sqrt(squared(m));
  // Projection on the leading singular vectors of the shorter side: exact at full rank whatever rounding does to them.
  const bool turn = rows > cols;
  if (turn)
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) m[size_t(j * rows + i)] = update[i * cols + j];
  const int64_t shorter = std::min(rows, cols), longer = std::max(rows, cols), kept = std::min(rank, shorter);
  std::vector<double> u, right(static_cast<size_t>(shorter * longer));
  left_vectors(pool, m, shorter, longer, u, cancel);
  multiply(pool, right.data(), u.data(), m.data(), shorter, shorter, longer);
  f.error = std::sqrt(squared({right.begin() + kept * longer, right.end()}));
  if (!turn) {
    store(f, u, right, kept, rows, cols);
    return f;
  }
  // update = Σ right_j u_jᵀ: the unit vectors are on the other side.
  MergeFactors other;
  store(other, u, right, kept, cols, rows);
  f.rank = kept;
  f.a.resize(size_t(kept * cols));
  f.b.resize(size_t(rows * kept));
  for (int64_t j = 0; j < kept; ++j) {
    for (int64_t i = 0; i < cols; ++i) f.a[size_t(j * cols + i)] = other.b[size_t(i * kept + j)];
    for (int64_t i = 0; i < rows; ++i) f.b[size_t(i * kept + j)] = other.a[size_t(j * rows + i)];
  }
  return f;
}

MergeFactors merge_factors(Pool& pool, const MergeTensor& t, int64_t rank, const Cancel& cancel) {
  const std::vector<double> c = merge_coefficients(pool, t);
  const int64_t groups = int64_t(c.size() / t.experts.size());
  const auto coefficient = [&](size_t expert, int64_t row) { return c[expert * size_t(groups) + size_t(groups == 1 ? 0 : row)]; };
  std::vector<size_t> used;
  int64_t total = 0;
  for (size_t i = 0; i < t.experts.size(); ++i) {
    const auto from = c.begin() + int64_t(i) * groups;
    if (t.experts[i].r == 0 || std::all_of(from, from + groups, [](double x) { return x == 0; })) continue;
    used.push_back(i);
    total += t.experts[i].r;
  }
  // The concatenation: b [rows × total], a [total × cols].
  std::vector<double> b(static_cast<size_t>(t.rows * total)), a(static_cast<size_t>(total * t.cols));
  int64_t at = 0;
  for (size_t i : used) {
    const MergeExpert& e = t.experts[i];
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t p = 0; p < e.r; ++p) b[size_t(r * total + at + p)] = coefficient(i, r) * e.scale * double(e.b[r * e.r + p]);
    std::copy(e.a, e.a + e.r * t.cols, a.begin() + at * t.cols);
    at += e.r;
  }
  cancel.check();

  MergeFactors f;
  // With b = Qbᵀ Rb and aᵀ = Qaᵀ Ra the update is Qbᵀ (Rb Raᵀ) Qa: its singular values are those of the small core.
  std::vector<double> turned(static_cast<size_t>(t.cols * total)), qa, ra, qb, rb;
  for (int64_t p = 0; p < total; ++p)
    for (int64_t j = 0; j < t.cols; ++j) turned[size_t(j * total + p)] = a[size_t(p * t.cols + j)];
  const int64_t na = orthonormal(turned.data(), t.cols, total, qa, ra), nb = orthonormal(b.data(), t.rows, total, qb, rb);
  std::vector<double> core(static_cast<size_t>(nb * na)), ra_turned(static_cast<size_t>(total * na));
  for (int64_t i = 0; i < na; ++i)
    for (int64_t p = 0; p < total; ++p) ra_turned[size_t(p * na + i)] = ra[size_t(i * total + p)];
  multiply(pool, core.data(), rb.data(), ra_turned.data(), nb, total, na);
  f.norm = std::sqrt(squared(core));
  if (rank == 0 && total > 0 && total <= std::min(t.rows, t.cols)) {
    f.rank = total;
    f.a.assign(a.begin(), a.end());
    f.b.assign(b.begin(), b.end());
    return f;
  }
  const int64_t kept = std::min(rank == 0 ? std::min(t.rows, t.cols) : rank, nb);
  std::vector<double> u, right(static_cast<size_t>(nb * na)), left(static_cast<size_t>(kept * t.rows)), wide(static_cast<size_t>(kept * t.cols));
  left_vectors(pool, core, nb, na, u, cancel);
  multiply(pool, right.data(), u.data(), core.data(), nb, nb, na);
  f.error = std::sqrt(squared({right.begin() + kept * na, right.end()}));
  multiply(pool, left.data(), u.data(), qb.data(), kept, nb, t.rows);
  multiply(pool, wide.data(), right.data(), qa.data(), kept, na, t.cols);
  store(f, left, wide, kept, t.rows, t.cols);
  return f;
}

}  // namespace pluralign
