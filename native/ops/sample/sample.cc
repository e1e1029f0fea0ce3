#include "sample.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/status.h"

namespace pluralign {
namespace {

double uniform(uint32_t seed, uint32_t step) {  // splitmix64's finaliser over (seed, step)
  uint64_t x = (uint64_t(seed) << 32 | step) + 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return double((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

}  // namespace

int32_t sample(const float* logits, int64_t vocabulary, const SampleOptions& o, uint32_t seed, uint32_t step, std::vector<int32_t>& order) {
  // Sorting needs an order, which a NaN has not.
  for (int64_t i = 0; i < vocabulary; ++i)
    if (!(logits[i] < INFINITY)) throw_error("NON_FINITE", "the logit of token %lld is %g: the weights or the adapter are damaged", (long long)i, double(logits[i]));
  if (o.temperature <= 0) return int32_t(std::max_element(logits, logits + vocabulary) - logits);
  order.resize(size_t(vocabulary));
  std::iota(order.begin(), order.end(), 0);
  const auto larger = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  size_t kept = order.size();
  if (o.top_k > 0 && o.top_k < vocabulary) {
    kept = size_t(o.top_k);
    std::partial_sort(order.begin(), order.begin() + int64_t(kept), order.end(), larger);
  } else if (o.top_p < 1) {
    std::sort(order.begin(), order.end(), larger);
  }
  double top = -INFINITY, total = 0;
  for (size_t i = 0; i < kept; ++i) top = std::max(top, double(logits[order[i]]));
  const auto mass = [&](size_t i) { return std::exp((double(logits[order[i]]) - top) / o.temperature); };
  for (size_t i = 0; i < kept; ++i) total += mass(i);
  if (o.top_p < 1) {
    double reached = 0;
    size_t n = 0;
    while (n < kept && reached < o.top_p * total) reached += mass(n++);
    kept = std::max<size_t>(1, n);
    total = reached;
  }
  double left = uniform(seed, step) * total;
  for (size_t i = 0; i < kept; ++i)
    if ((left -= mass(i)) < 0) return order[i];
  return order[kept - 1];
}

}  // namespace pluralign
