// Draws of the next token: support, frequencies, and what they depend on.
#include "ops/sample/sample.h"

#include <set>

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

int32_t draw(const std::vector<float>& logits, const SampleOptions& o, uint32_t seed, uint32_t step = 0) {
  SampleScratch scratch;
  return sample(kernels_of(choose_isa()), logits.data(), int64_t(logits.size()), o, seed, step, {}, scratch).token;
}

// The tokens that may be drawn with their probabilities, by sorting and adding up.
std::vector<double> probabilities(const std::vector<float>& logits, const SampleOptions& o) {
  std::vector<int32_t> order;
  std::vector<double> p(logits.size(), 0);
  for (size_t i = 0; i < logits.size(); ++i) order.push_back(int32_t(i));
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[size_t(a)] > logits[size_t(b)]; });
  if (o.top_k > 0) order.resize(std::min(order.size(), size_t(o.top_k)));
  double total = 0, reached = 0;
  for (int32_t i : order) total += p[size_t(i)] = std::exp(double(logits[size_t(i)]) / o.temperature);
  for (int32_t i : order) {
    if (o.top_p < 1 && reached >= o.top_p * total && reached > 0) p[size_t(i)] = 0;
    reached += p[size_t(i)];
  }
  for (double& x : p) x /= reached;
  return p;
}

}  // namespace

TEST(sample_greedy_takes_the_largest_and_the_lower_id_on_a_tie) {
  for (float temperature : {0.f, -1.f}) {
    CHECK(draw({1, 5, 2, 5, 5}, {temperature, 0, 1}, 9) == 1);
    CHECK(draw({-3}, {temperature, 0, 1}, 9) == 0);
    CHECK(draw({-3, -2, -2}, {temperature, 1, 0.1f}, 9) == 1);
  }
  // top_k 1 and top_p 0 leave the same token.
  for (uint32_t seed = 0; seed < 50; ++seed) {
    CHECK(draw({1, 5, 2, 5, 5}, {1, 1, 1}, seed) == 1);
    CHECK(draw({1, 5, 2, 5, 5}, {1, 0, 0}, seed) == 1);
    CHECK(draw({1, 5, 2, 5, 5}, {1, 3, 1e-6f}, seed) == 1);
  }
}

TEST(sample_frequencies_match_probabilities) {
  Random random(1);
  std::vector<float> logits = random.normals(12, 1.5);
  logits[3] = logits[7];
  for (const SampleOptions& o : {SampleOptions{1, 0, 1}, SampleOptions{0.6f, 0, 1}, SampleOptions{2, 5, 1}, SampleOptions{1, 0, 0.8f}, SampleOptions{1.3f, 6, 0.7f},
                                 SampleOptions{1, 12, 1}, SampleOptions{1, 100, 0.5f}}) {
    const std::vector<double> p = probabilities(logits, o);
    const int draws = 20'000;
    std::vector<int> count(logits.size(), 0);
    for (int i = 0; i < draws; ++i)  // seeds and steps both vary
      ++count[size_t(draw(logits, o, uint32_t(i / 100), uint32_t(i % 100)))];
    for (size_t t = 0; t < p.size(); ++t) {
      if (p[t] == 0) CHECK(count[t] == 0);
      else CHECK_NEAR(count[t], draws * p[t], 4 * std::sqrt(draws * p[t] * (1 - p[t])) + 1e-9);
    }
  }
}

TEST(sample_support_is_top_k_and_top_p) {
  const std::vector<float> logits{2, 0, 3, 3, -1, 1};  // ids by size: 2, 3, 0, 5, 1, 4
  const auto support = [&](const SampleOptions& o) {
    std::set<int32_t> seen;
    for (uint32_t seed = 0; seed < 3000; ++seed) seen.insert(draw(logits, o, seed));
    return seen;
  };
  CHECK(support({3, 2, 1}) == std::set<int32_t>({2, 3}));
  CHECK(support({3, 3, 1}) == std::set<int32_t>({0, 2, 3}));
  // 2 and 3 have 0.41 each where 0 has 0.15: 0.4 takes one of them, 0.5 two, 0.9 three.
  CHECK(support({1, 0, 0.35f}) == std::set<int32_t>({2}));
  CHECK(support({1, 0, 0.5f}) == std::set<int32_t>({2, 3}));
  CHECK(support({1, 0, 0.9f}) == std::set<int32_t>({0, 2, 3}));
  CHECK(support({3, 0, 1}).size() == 6);
}

TEST(sample_depends_on_seed_and_step_alone) {
  Random random(2);
  const std::vector<float> logits = random.normals(50);
  const SampleOptions o{1, 0, 0.95f};
  const Kernels& kernels = kernels_of(choose_isa());
  SampleScratch used;
  sample(kernels, logits.data(), 40, o, 3, 3, {}, used);
  int same_seed = 0, same_step = 0;
  for (uint32_t i = 0; i < 200; ++i) {
    CHECK(sample(kernels, logits.data(), 50, o, i, 4, {}, used).token == draw(logits, o, i, 4));
    same_seed += draw(logits, o, 7, i) == draw(logits, o, 7, i + 1);
    same_step += draw(logits, o, i, 7) == draw(logits, o, i + 1, 7);
  }
  CHECK(same_seed < 60 && same_step < 60);
  CHECK(draw({0.f, -kInfinity, -kInfinity}, {1, 0, 1}, 3) == 0);
}

TEST(sample_refuses_what_is_not_finite) {
  for (float bad : {kNaN, kInfinity})
    for (const SampleOptions& o : {SampleOptions{0, 0, 1}, SampleOptions{1, 0, 1}, SampleOptions{1, 2, 1}, SampleOptions{1, 0, 0.9f}}) {
      std::vector<float> logits(40, 0.5f);
      logits[17] = bad;
      CHECK_THROWS("NON_FINITE", "token 17", draw(logits, o, 1));
    }
}
