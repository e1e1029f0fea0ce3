#include "sample.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/status.h"

namespace pluralign {
namespace {

constexpr int64_t kRun = 256;  // probabilities that are added up before they are looked at one by one

struct Partition {
  float top = -INFINITY;
  double sum = 0;
  double log() const { return double(top) + std::log(sum); }
};

// Maximum and Σ e^(x - max) of a row of logits, none of which may be NaN or +infinity.
Partition partition(const Kernels& kernels, const float* x, int64_t n) {
  Partition p;
  double squares = 0;
  kernels.logsumexp_row(x, n, &p.top, &p.sum, &squares);
  if (p.top < INFINITY && p.sum > 0 && p.sum < INFINITY) return p;
  for (int64_t i = 0; i < n; ++i)
    if (!(x[i] < INFINITY)) throw_error("NON_FINITE", "the logit of token %lld is %g: the weights or the adapter are damaged", (long long)i, double(x[i]));
  throw_error("NON_FINITE", "all logits are -infinity");
}

double add_up(const float* p, int64_t n) {
  double lanes[4] = {};
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int l = 0; l < 4; ++l) lanes[l] += double(p[i + l]);
  for (; i < n; ++i) lanes[0] += double(p[i]);
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

// The index at which the running sum of p first exceeds u · total.
int64_t invert(const float* p, int64_t n, double u) {
  double total = 0;
  for (int64_t i = 0; i < n; i += kRun) total += add_up(p + i, std::min(kRun, n - i));
  double left = u * total;
  int64_t last = 0;
  for (int64_t i = 0; i < n; i += kRun) {
    const int64_t end = std::min(n, i + kRun);
    const double run = add_up(p + i, end - i);
    if (left >= run) {
      left -= run;
      continue;
    }
    for (int64_t j = i; j < end; ++j) {
      if (p[j] > 0) last = j;
      if ((left -= double(p[j])) < 0) return j;
    }
    return last;  // rounding: the run's terms in another order
  }
  for (int64_t j = 0; j < n; ++j)
    if (p[j] > 0) last = j;
  return last;
}

// The tokens that top_k, top_p and min_p keep, likeliest first. p: probabilities over that of the likeliest.
void keep(const float* p, int64_t n, const SampleOptions& o, std::vector<int32_t>& kept) {
  const int64_t most = o.top_k > 0 ? std::min(o.top_k, n) : n;
  const auto larger = [&](int32_t a, int32_t b) { return p[a] != p[b] ? p[a] > p[b] : a < b; };
  double total = 0;
  for (int64_t i = 0; i < n; i += kRun) total += add_up(p + i, std::min(kRun, n - i));
  // Only tokens above a bound are sorted; it falls until they hold enough tokens or enough probability.
  for (float bound = 1e-2f;; bound *= 1e-3f) {
    const bool all = bound < 1e-12f;
    const float lowest = std::max(all ? 0.f : bound, o.min_p);
    kept.clear();
    double held = 0;
    for (int64_t i = 0; i < n; ++i)
      if (p[i] >= lowest) {
        kept.push_back(int32_t(i));
        held += double(p[i]);
      }
    const bool enough = int64_t(kept.size()) >= most || (o.top_k == 0 && held >= double(o.top_p) * total);
    if (enough || all || lowest <= o.min_p) break;
  }
  std::sort(kept.begin(), kept.end(), larger);
  if (int64_t(kept.size()) > most) kept.resize(size_t(most));
  if (o.top_p >= 1) return;
  if (o.top_k > 0) {
    // min_p may have taken tokens of the top k away already: their probability counts all the same.
    total = 0;
    if (int64_t(kept.size()) == most) for (int32_t i : kept) total += double(p[i]);
    else {
      std::vector<int32_t> order(static_cast<size_t>(n));
      for (int64_t i = 0; i < n; ++i) order[size_t(i)] = int32_t(i);
      std::partial_sort(order.begin(), order.begin() + most, order.end(), larger);
      for (int64_t i = 0; i < most; ++i) total += double(p[order[size_t(i)]]);
    }
  }
  double reached = 0;
  size_t count = 0;
  while (count < kept.size() && reached < double(o.top_p) * total) reached += double(p[kept[count++]]);
  kept.resize(std::max<size_t>(1, count));
}

void penalise(float* x, const std::vector<int32_t>& seen, float penalty) {
  if (penalty == 1.f) return;
  for (int32_t i : seen) x[i] = x[i] > 0 ? x[i] / penalty : x[i] * penalty;
}

}  // namespace

double sample_place(uint32_t seed, uint32_t step) {  // splitmix64's finaliser over (seed, step)
  uint64_t x = (uint64_t(seed) << 32 | step) + 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return double((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

Sample sample(const Kernels& kernels, const float* logits, int64_t n, const SampleOptions& o, uint32_t seed, uint32_t step,
              const std::vector<int32_t>& seen, SampleScratch& scratch) {
  float* x = scratch.row.as<float>(n);
  const bool greedy = !(o.temperature > 0);
  if (greedy || o.temperature == 1.f) std::memcpy(x, logits, size_t(n) * 4);
  else {
    const float scale = 1.f / o.temperature;
    for (int64_t i = 0; i < n; ++i) x[i] = logits[i] * scale;
  }
  const Partition whole = partition(kernels, x, n);
  const auto logp = [&](int64_t token) {
    const double scaled = greedy ? double(logits[token]) : double(logits[token] * (o.temperature == 1.f ? 1.f : 1.f / o.temperature));
    return float(scaled - whole.log());
  };
  penalise(x, seen, o.repetition_penalty);
  if (greedy) {
    const int64_t best = std::max_element(x, x + n) - x;
    return {int32_t(best), logp(best)};
  }
  const float top = o.repetition_penalty == 1.f ? whole.top : *std::max_element(x, x + n);
  kernels.head_gradient_row(x, n, top, 1.f);
  const double u = sample_place(seed, step);
  const bool cut = (o.top_k > 0 && o.top_k < n) || o.top_p < 1 || o.min_p > 0;
  if (!cut) {
    const int64_t token = invert(x, n, u);
    return {int32_t(token), logp(token)};
  }
  keep(x, n, o, scratch.kept);
  double total = 0;
  for (int32_t i : scratch.kept) total += double(x[i]);
  double left = u * total;
  int32_t token = scratch.kept.back();
  for (int32_t i : scratch.kept)
    if ((left -= double(x[i])) < 0) {
      token = i;
      break;
    }
  return {token, logp(token)};
}

void mix_logits(const Kernels& kernels, Mix mix, double alpha, const std::vector<const float*>& logits, const std::vector<float>& weights,
                int64_t n, float* out) {
  std::vector<double> log_sum;
  for (const float* row : logits) log_sum.push_back(partition(kernels, row, n).log());
  const size_t count = logits.size();
  if (mix == Mix::reverse_kl) {
    for (int64_t v = 0; v < n; ++v) {
      double sum = 0;
      for (size_t i = 0; i < count; ++i) sum += double(weights[i]) * (double(logits[i][v]) - log_sum[i]);
      out[v] = float(sum);
    }
    return;
  }
  const double a = mix == Mix::forward_kl ? 1 : alpha;
  for (int64_t v = 0; v < n; ++v) {
    double largest = -INFINITY, sum = 0;
    for (size_t i = 0; i < count; ++i) largest = std::max(largest, -a * (double(logits[i][v]) - log_sum[i]));
    for (size_t i = 0; i < count; ++i) sum += double(weights[i]) * std::exp(-a * (double(logits[i][v]) - log_sum[i]) - largest);
    out[v] = float(-(largest + std::log(sum)) / a);
  }
}

}  // namespace pluralign
