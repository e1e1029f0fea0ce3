// What merging stands on: eigenvectors, orthonormal columns, draws; the methods are tested against dense references in
// test/merge.test.ts.
#include "ops/merge/linalg.h"
#include "ops/merge/merge.h"
#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

std::vector<double> symmetric(Random& random, int64_t n, int64_t rank) {
  std::vector<double> s(size_t(n * n), 0.0);
  for (int64_t k = 0; k < rank; ++k) {
    const std::vector<float> v = random.normals(n);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) s[size_t(i * n + j)] += (k % 3 ? 1.0 : -0.5) * double(v[size_t(i)]) * double(v[size_t(j)]);
  }
  return s;
}

}  // namespace

TEST(eigen_symmetric_decomposes) {
  Random random(1);
  for (int64_t n : {1, 2, 3, 5, 17, 64, 130})
    for (int64_t rank : {int64_t(0), int64_t(1), n / 2, n, 2 * n}) {
      const std::vector<double> s = symmetric(random, n, rank);
      std::vector<double> copy = s, values(static_cast<size_t>(n)), v(static_cast<size_t>(n * n));
      eigen_symmetric(copy.data(), n, values.data(), v.data(), Cancel());
      double size = 1e-300;
      for (double x : s) size = std::max(size, std::abs(x));
      for (int64_t i = 0; i < n; ++i) {
        if (i > 0) CHECK(values[size_t(i)] <= values[size_t(i - 1)]);
        for (int64_t j = 0; j < n; ++j) {
          double product = 0, image = 0;
          for (int64_t k = 0; k < n; ++k) {
            product += v[size_t(i * n + k)] * v[size_t(j * n + k)];
            image += s[size_t(j * n + k)] * v[size_t(i * n + k)];
          }
          CHECK_NEAR(product, i == j ? 1 : 0, 1e-12);
          CHECK_NEAR(image, values[size_t(i)] * v[size_t(i * n + j)], 1e-12 * size * double(n));
        }
      }
    }
  // Diagonal and repeated values.
  std::vector<double> s(25, 0.0), values(5), v(25);
  for (int i = 0; i < 5; ++i) s[size_t(i * 6)] = i == 2 ? 7 : 3;
  eigen_symmetric(s.data(), 5, values.data(), v.data(), Cancel());
  CHECK(values == std::vector<double>({7, 3, 3, 3, 3}));
}

TEST(orthonormal_columns_give_the_matrix_back) {
  Random random(2);
  for (auto [n, k] : {std::pair<int64_t, int64_t>{1, 1}, {9, 4}, {4, 9}, {30, 30}, {50, 12}}) {
    std::vector<double> x = doubles(random.normals(n * k)), q, r;
    if (k > 2)
      for (int64_t i = 0; i < n; ++i) x[size_t(i * k + 2)] = x[size_t(i * k)] - 2 * x[size_t(i * k + 1)];  // a column that adds nothing
    const int64_t rank = orthonormal(x.data(), n, k, q, r);
    CHECK(rank == std::min(n, k > 2 ? k - 1 : k));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < k; ++j) {
        double sum = 0;
        for (int64_t p = 0; p < rank; ++p) sum += q[size_t(p * n + i)] * r[size_t(p * k + j)];
        CHECK_NEAR(sum, x[size_t(i * k + j)], 1e-12);
      }
    for (int64_t p = 0; p < rank; ++p)
      for (int64_t o = 0; o < rank; ++o) {
        double sum = 0;
        for (int64_t i = 0; i < n; ++i) sum += q[size_t(p * n + i)] * q[size_t(o * n + i)];
        CHECK_NEAR(sum, p == o ? 1 : 0, 1e-12);
      }
  }
  std::vector<double> zero(12, 0.0), q, r;
  CHECK(orthonormal(zero.data(), 4, 3, q, r) == 0);
}

TEST(best_rank_is_exact_at_full_rank_and_the_same_on_any_threads) {
  Random random(4);
  for (auto [m, n] : {std::pair<int64_t, int64_t>{1, 7}, {7, 1}, {20, 33}, {33, 20}}) {
    const std::vector<double> w = doubles(random.normals(m * n));
    Pool one(1), three(3);
    const int64_t full = std::min(m, n);
    for (int64_t rank : {int64_t(1), full, full + 5}) {
      const MergeFactors f = best_rank(one, w.data(), m, n, rank, Cancel()), g = best_rank(three, w.data(), m, n, rank, Cancel());
      CHECK(f.a == g.a && f.b == g.b && f.rank == std::min(rank, full));
      double lost = 0;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (int64_t p = 0; p < f.rank; ++p) sum += double(f.b[size_t(i * f.rank + p)]) * double(f.a[size_t(p * n + j)]);
          lost += (sum - w[size_t(i * n + j)]) * (sum - w[size_t(i * n + j)]);
        }
      CHECK_NEAR(std::sqrt(lost), f.error, 1e-5);
      if (rank >= full) CHECK(f.error == 0);
    }
  }
}

TEST(merge_draws_are_uniform_and_their_own) {
  double mean = 0;
  int same = 0;
  for (uint64_t i = 0; i < 20'000; ++i) {
    const double u = merge_uniform(5, i);
    CHECK(u >= 0 && u < 1);
    mean += u / 20'000;
    same += merge_uniform(6, i) == u;
  }
  CHECK_NEAR(mean, 0.5, 0.01);
  CHECK(same == 0);
}
