// Experts' updates, what of them stays, and how they are combined element by element.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "merge.h"

namespace pluralign {

double merge_uniform(uint64_t key, uint64_t index) {  // splitmix64
  uint64_t x = key + (index + 1) * 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return double((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

void expert_update(Pool& pool, const MergeTensor& t, const MergeExpert& e, double* out) {
  pool.ranges(t.rows, std::max<int64_t>(1, 4096 / std::max<int64_t>(1, t.cols)), [&](int64_t i, int64_t end, int) {
    for (; i < end; ++i) {
      double* row = out + i * t.cols;
      if (e.dense) {
        const float* from = e.dense + i * t.cols;
        const float* base = t.base ? t.base + i * t.cols : nullptr;
        for (int64_t j = 0; j < t.cols; ++j) row[j] = double(from[j]) - (base ? double(base[j]) : 0.0);
        continue;
      }
      std::fill(row, row + t.cols, 0.0);
      for (int64_t p = 0; p < e.r; ++p) {
        const double f = e.scale * double(e.b[i * e.r + p]);
        const float* from = e.a + p * t.cols;
        for (int64_t j = 0; j < t.cols; ++j) row[j] += f * double(from[j]);
      }
    }
  });
}

namespace {

// Zeroes all but ranks [first, first + count) of |x|, counted from the largest; a tie goes to the lower index.
void keep_ranks(double* x, int64_t n, int64_t first, int64_t count) {
  if (first == 0 && count >= n) return;
  std::vector<uint32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0u);
  const auto larger = [&](uint32_t a, uint32_t b) {
    const double p = std::abs(x[a]), q = std::abs(x[b]);
    return p != q ? p > q : a < b;
  };
  const auto begin = order.begin(), from = begin + first, to = begin + std::min(n, first + count);
  if (to != order.end()) std::nth_element(begin, to, order.end(), larger);
  if (from != begin && from != to) std::nth_element(begin, from, to, larger);
  for (auto i = begin; i != from; ++i) x[*i] = 0;
  for (auto i = to; i != order.end(); ++i) x[*i] = 0;
}

void keep_by_rank(const MergeTensor& t, uint64_t key, double* x) {
  std::vector<uint32_t> order(static_cast<size_t>(t.cols));
  const double lowest = t.density - t.epsilon / 2, step = t.cols > 1 ? t.epsilon / double(t.cols - 1) : 0;
  for (int64_t i = 0; i < t.rows; ++i) {
    double* row = x + i * t.cols;
    std::iota(order.begin(), order.end(), 0u);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
      const double p = std::abs(row[a]), q = std::abs(row[b]);
      return p != q ? p < q : a < b;
    });
    for (int64_t rank = 0; rank < t.cols; ++rank) {
      const uint32_t j = order[size_t(rank)];
      const double keep = t.cols > 1 ? lowest + step * double(rank) : t.density;
      row[j] = merge_uniform(key, uint64_t(i * t.cols + j)) < keep ? row[j] / keep : 0.0;
    }
  }
}

}  // namespace

void sparsify(const MergeTensor& t, uint64_t key, double* x) {
  const int64_t n = t.rows * t.cols, kept = int64_t(t.density * double(n));
  switch (t.keep) {
    case Keep::all: return;
    case Keep::magnitude: return keep_ranks(x, n, 0, std::max<int64_t>(1, kept));
    case Keep::ranked: return keep_by_rank(t, key, x);
    case Keep::random:
      for (int64_t i = 0; i < n; ++i) x[i] = merge_uniform(key, uint64_t(i)) < t.density ? x[i] / t.density : 0.0;
      return;
    case Keep::breadcrumbs: {
      // Where the two shares leave no smallest ones to drop, fewer of the largest go.
      const int64_t top = std::min(int64_t(t.gamma * double(n)), n - kept);
      return keep_ranks(x, n, top, std::max<int64_t>(1, kept));
    }
  }
}

void merge_dense(Pool& pool, const MergeTensor& t, double* out, const Cancel& cancel) {
  const int64_t n = t.rows * t.cols;
  std::vector<double> update(static_cast<size_t>(n));
  std::fill(out, out + n, 0.0);
  const auto each = [&](auto&& use) {
    for (size_t i = 0; i < t.experts.size(); ++i) {
      cancel.check();
      if (t.experts[i].weight == 0 && t.combine != Combine::stock) continue;
      expert_update(pool, t, t.experts[i], update.data());
      sparsify(t, t.experts[i].key, update.data());
      use(i);
    }
  };
  if (t.combine == Combine::elect) {
    // Twice over the experts rather than all of their updates at once: memory does not grow with their number.
    each([&](size_t i) {
      for (int64_t j = 0; j < n; ++j) out[j] += t.experts[i].weight * update[size_t(j)];
    });
    std::vector<double> sum(static_cast<size_t>(n), 0.0), weight(static_cast<size_t>(n), 0.0);
    each([&](size_t i) {
      const double w = t.experts[i].weight;
      for (int64_t j = 0; j < n; ++j) {
        const double x = w * update[size_t(j)];
        if (x != 0 && out[j] != 0 && std::signbit(x) == std::signbit(out[j])) {
          sum[size_t(j)] += x;
          weight[size_t(j)] += std::abs(w);
        }
      }
    });
    for (int64_t j = 0; j < n; ++j) out[j] = weight[size_t(j)] > 0 ? t.lambda * sum[size_t(j)] / weight[size_t(j)] : 0.0;
    return;
  }
  const std::vector<double> c = merge_coefficients(pool, t);
  const int64_t groups = int64_t(c.size() / t.experts.size());
  each([&](size_t i) {
    for (int64_t r = 0; r < t.rows; ++r) {
      const double f = c[i * size_t(groups) + size_t(groups == 1 ? 0 : r)];
      for (int64_t j = r * t.cols; j < (r + 1) * t.cols; ++j) out[j] += f * update[size_t(j)];
    }
  });
}

}  // namespace pluralign
