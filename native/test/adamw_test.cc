// AdamW against its formula in float64, and the sums over flat buffers.
#include "ops/adamw/adamw.h"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

TEST(adamw_matches_the_formula_over_fifty_steps) {
  on_every_machine([](Context& context) {
    for (int64_t n : {0, 1, 3, 16, 37, 1001})
      for (double decay : {0.0, 0.1}) {
        const double rate = 3e-3, b1 = 0.9, b2 = 0.999, eps = 1e-8, scale = 0.7;
        Random random(unsigned(n) + 1);
        std::vector<float> p = random.normals(n + 1), m(size_t(n + 1), 0.f), v = m;
        const float last = p[size_t(n)];
        std::vector<double> dp = doubles(p), dm = doubles(m), dv = dm;
        for (int64_t t = 1; t <= 50; ++t) {
          std::vector<float> g = random.normals(n + 1, t % 10 ? 1 : 1e-6);  // gradients of every size
          adamw(context, p.data(), g.data(), m.data(), v.data(), n, adamw_step(rate, b1, b2, eps, decay, scale, t));
          for (int64_t i = 0; i < n; ++i) {
            const size_t at = size_t(i);
            const double d = scale * g[at];
            dm[at] = b1 * dm[at] + (1 - b1) * d;
            dv[at] = b2 * dv[at] + (1 - b2) * d * d;
            dp[at] = dp[at] * (1 - rate * decay) - rate * (dm[at] / (1 - std::pow(b1, double(t)))) / (std::sqrt(dv[at] / (1 - std::pow(b2, double(t)))) + eps);
          }
        }
        const std::string where = name_of(context) + " n " + std::to_string(n);
        CHECK_CLOSE(where, p, dp, 5e-6, 0);
        CHECK_CLOSE(where + " m", m, dm, 1e-7, 2e-6);
        CHECK_CLOSE(where + " v", v, dv, 1e-9, 1e-5);
        CHECK(p[size_t(n)] == last && m[size_t(n)] == 0 && v[size_t(n)] == 0);
      }
  });
}

TEST(adamw_first_step_moves_by_the_rate) {
  for (Isa isa : instruction_sets()) {
    Machine machine(isa, 1);
    std::vector<float> p{1, 1, 1}, g{1e-3f, -50, 0}, m(3, 0.f), v(3, 0.f);
    adamw(machine.context, p.data(), g.data(), m.data(), v.data(), 3, adamw_step(0.01, 0.9, 0.999, 1e-8, 0, 1, 1));
    CHECK_NEAR(p[0], 0.99, 1e-6);
    CHECK_NEAR(p[1], 1.01, 1e-6);
    CHECK(p[2] == 1);
  }
}

TEST(adamw_does_not_depend_on_threads_or_spans) {
  for (Isa isa : instruction_sets()) {
    const int64_t n = 100'003;
    const AdamWStep step = adamw_step(1e-3, 0.9, 0.999, 1e-8, 0.01, 0.5, 3);
    const auto run = [&](int threads, const std::vector<int64_t>& cuts) {
      Machine machine(isa, threads);
      Random random(1);
      std::vector<float> p = random.normals(n), g = random.normals(n), m = random.normals(n), v = random.normals(n);
      for (float& x : v) x = std::abs(x);
      for (size_t i = 0; i + 1 < cuts.size(); ++i)
        adamw(machine.context, p.data() + cuts[i], g.data() + cuts[i], m.data() + cuts[i], v.data() + cuts[i], cuts[i + 1] - cuts[i], step);
      p.insert(p.end(), m.begin(), m.end());
      p.insert(p.end(), v.begin(), v.end());
      return p;
    };
    const std::vector<float> whole = run(1, {0, n});
    CHECK_BITS(isa_name(isa), run(3, {0, n}), whole);
    CHECK_BITS(isa_name(isa), run(3, {0, 1, 8, 31, 20'000, 50'001, n}), whole);
  }
}

TEST(adamw_sums_over_flat_buffers) {
  for (Isa isa : instruction_sets()) {
    const Kernels& kr = kernels_of(isa);
    Random random(2);
    for (int64_t n : {0, 1, 5, 15, 16, 17, 33, 1000}) {
      const std::vector<float> x = random.normals(n + 1), before = random.normals(n + 1);
      std::vector<float> y = before;
      std::vector<double> expected = doubles(before);
      double squares = 0;
      for (int64_t i = 0; i < n; ++i) {
        expected[size_t(i)] += -0.3 * double(x[size_t(i)]);
        squares += double(x[size_t(i)]) * double(x[size_t(i)]);
      }
      kr.axpy(y.data(), x.data(), -0.3f, n);
      CHECK_CLOSE(isa_name(isa), y, expected, 2e-7, 1e-6);
      CHECK_NEAR(kr.squared_norm(x.data(), n), squares, 1e-12 * (1 + squares));
    }
  }
}
