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
  const double likeliest = p[size_t(order[0])];
  for (int32_t i : order) {
    if (o.top_p < 1 && reached >= o.top_p * total && reached > 0) p[size_t(i)] = 0;
    reached += p[size_t(i)];
  }
  reached = 0;
  for (int32_t i : order) {
    if (p[size_t(i)] < double(o.min_p) * likeliest) p[size_t(i)] = 0;
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
                                 SampleOptions{1, 12, 1}, SampleOptions{1, 100, 0.5f}, SampleOptions{1, 0, 1, 0.1f},
                                 SampleOptions{1.5f, 9, 0.95f, 0.2f}, SampleOptions{1, 0, 0.9f, 0.01f}}) {
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

TEST(sample_of_a_large_vocabulary_matches_probabilities) {
  Random random(7);
  const std::vector<float> logits = random.normals(3000, 2.5);
  for (const SampleOptions& o : {SampleOptions{1, 0, 1}, SampleOptions{1, 700, 1}, SampleOptions{0.9f, 0, 0.97f}, SampleOptions{1, 0, 1, 0.001f}, SampleOptions{1, 50, 0.9f, 0.05f}}) {
    const std::vector<double> p = probabilities(logits, o);
    // Frequencies by parts of the vocabulary, and nothing outside the support.
    std::vector<double> count(30, 0), expected(30, 0);
    const int draws = 4000;
    for (int i = 0; i < draws; ++i) {
      const int32_t t = draw(logits, o, uint32_t(i), 5);
      CHECK(p[size_t(t)] > 0);
      ++count[size_t(t) / 100];
    }
    for (size_t t = 0; t < p.size(); ++t) expected[t / 100] += p[t];
    for (size_t b = 0; b < expected.size(); ++b) CHECK_NEAR(count[b], draws * expected[b], 4 * std::sqrt(draws * expected[b] * (1 - expected[b])) + 1);
  }
}

TEST(sample_penalises_what_was_seen) {
  const Kernels& kernels = kernels_of(choose_isa());
  SampleScratch scratch;
  const std::vector<float> logits{2, 1.5f, -1, 0};
  const auto greedy = [&](const std::vector<int32_t>& seen, float penalty) { return sample(kernels, logits.data(), 4, {0, 0, 1, 0, penalty}, 0, 0, seen, scratch); };
  CHECK(greedy({0}, 1).token == 0 && greedy({0}, 1.2f).token == 0 && greedy({0}, 1.5f).token == 1 && greedy({0, 1}, 8).token == 0);
  CHECK(greedy({}, 8).token == 0);
  // The log-probability is the policy's own, whatever the penalty.
  double total = 0;
  for (float x : logits) total += std::exp(double(x));
  CHECK_NEAR(greedy({0}, 1.5f).logp, 1.5 - std::log(total), 1e-6);
  // Drawn from the penalised logits: 2 / 4 and -1 · 4.
  const std::vector<double> p = probabilities({0.5f, 1.5f, -4, 0}, {1, 0, 1});
  std::vector<int> count(4, 0);
  const int draws = 20'000;
  for (int i = 0; i < draws; ++i) ++count[size_t(sample(kernels, logits.data(), 4, {1, 0, 1, 0, 4}, uint32_t(i), 0, {0, 2}, scratch).token)];
  for (size_t t = 0; t < 4; ++t) CHECK_NEAR(count[t], draws * p[t], 4 * std::sqrt(draws * p[t] * (1 - p[t])));
}

TEST(sample_gives_log_probabilities_at_the_temperature) {
  Random random(8);
  const std::vector<float> logits = random.normals(300, 2);
  on_every_machine([&](Context& context) {
    for (float temperature : {0.f, 1.f, 0.6f, 1.7f})
      for (const SampleOptions& o : {SampleOptions{temperature, 0, 1}, SampleOptions{temperature, 5, 0.9f, 0.1f, 1.3f}}) {
        SampleScratch scratch;
        const Sample s = sample(context.kernels, logits.data(), 300, o, 3, 1, {2, 7}, scratch);
        const double scale = temperature > 0 ? 1 / double(temperature) : 1;
        double total = 0;
        for (float x : logits) total += std::exp(double(x) * scale);
        CHECK_NEAR(s.logp, double(logits[size_t(s.token)]) * scale - std::log(total), 3e-6);
      }
  });
}

TEST(mix_logits_is_its_formula) {
  Random random(9);
  const int64_t n = 50;
  const std::vector<std::vector<float>> rows{random.normals(n, 2), random.normals(n, 3), random.normals(n)};
  const std::vector<float> w{0.2f, 0.5f, 0.3f};
  std::vector<std::vector<double>> p;
  for (const auto& row : rows) p.push_back(probabilities(row, {1, 0, 1}));
  for (auto [mix, alpha] : {std::pair{Mix::reverse_kl, 1.0}, {Mix::forward_kl, 1.0}, {Mix::alpha, 0.5}, {Mix::alpha, 3.0}, {Mix::alpha, -0.5}}) {
    std::vector<float> out(static_cast<size_t>(n), kNaN);
    mix_logits(kernels_of(choose_isa()), mix, alpha, {rows[0].data(), rows[1].data(), rows[2].data()}, w, n, out.data());
    for (size_t v = 0; v < size_t(n); ++v) {
      double sum = 0;
      const double a = mix == Mix::forward_kl ? 1 : alpha;
      for (size_t i = 0; i < 3; ++i) sum += double(w[i]) * (mix == Mix::reverse_kl ? std::log(p[i][v]) : std::pow(p[i][v], -a));
      CHECK_NEAR(out[v], mix == Mix::reverse_kl ? sum : std::log(sum) / -a, 2e-5);
    }
  }
  std::vector<float> bad = rows[0], out(static_cast<size_t>(n));
  bad[3] = kNaN;
  CHECK_THROWS("NON_FINITE", "token 3", mix_logits(kernels_of(choose_isa()), Mix::reverse_kl, 1, {rows[1].data(), bad.data()}, {0.5f, 0.5f}, n, out.data()));
}
