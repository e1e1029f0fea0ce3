// Low-rank rewards of votes: every instruction set against the reference over odd shapes, the reference against finite
// differences, and results that do not depend on threads.
#include "ops/bilinear/bilinear.h"

#include <cmath>

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

#define CHECK_SAY(condition, where) \
  do {                              \
    if (!(condition)) fail(__FILE__, __LINE__, where); \
  } while (0)

struct Votes {
  std::vector<int32_t> voter_start, vote_start, places, stages;
  std::vector<double> weights, margins;
  double tie = 0;
  bool mixed = false, weighted = false;

  Ballots view() const {
    Ballots b;
    b.voters = int64_t(voter_start.size()) - 1;
    b.votes = int64_t(vote_start.size()) - 1;
    b.voter_start = voter_start.data();
    b.places = places.data();
    if (mixed) b.vote_start = vote_start.data();
    if (mixed || tie > 0) b.stages = stages.data();
    if (weighted) {
      b.weights = weights.data();
      b.margins = margins.data();
    }
    b.tie = tie;
    return b;
  }
};

// Voters with 0, 1, … votes; with `mixed` every third a ranking of up to five, with `tie` every fourth pair tied.
Votes make_votes(Random& random, int64_t voters, int64_t most, int64_t items, bool mixed, double tie, bool weighted) {
  Votes votes;
  votes.mixed = mixed;
  votes.weighted = weighted;
  votes.tie = tie;
  votes.voter_start.push_back(0);
  votes.vote_start.push_back(0);
  for (int64_t u = 0; u < voters; ++u) {
    for (int64_t v = random.below(most + 1); v > 0; --v) {
      const bool ranking = mixed && v % 3 == 0;
      const int64_t places = ranking ? 3 + random.below(3) : 2;
      for (int64_t s = 0; s < places; ++s) votes.places.push_back(int32_t(random.below(items)));
      votes.vote_start.push_back(int32_t(votes.places.size()));
      votes.stages.push_back(ranking ? int32_t(1 + random.below(places - 1)) : tie > 0 && v % 4 == 0 ? 0 : 1);
      votes.weights.push_back(0.25 + random.uniform());
      votes.margins.push_back(ranking ? 0 : random.uniform() - 0.5);
    }
    votes.voter_start.push_back(int32_t(votes.vote_start.size()) - 1);
  }
  return votes;
}

template <class T>
std::vector<T> values(Random& random, int64_t n, double size = 1) {
  std::vector<T> out(static_cast<size_t>(n));
  for (T& x : out) x = T(size * random.normal());
  return out;
}
template <class T>
std::vector<double> as_doubles(const std::vector<T>& v) { return {v.begin(), v.end()}; }

template <class T>
bool close(const std::vector<T>& found, const std::vector<T>& expected, double tolerance) {
  double size = 1e-30, worst = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    size = std::max(size, std::abs(double(expected[i])));
    worst = std::max(worst, std::abs(double(found[i]) - double(expected[i])));
    if (!(found[i] == found[i])) return false;
  }
  return worst <= tolerance * std::max(size, 1.0);
}

template <class T>
struct Outcome {
  std::vector<T> points, d_points, d_users, dv;
  double loss = 0;
};

template <class T>
Outcome<T> everything(Context& context, const Ballots& b, const std::vector<float>& x, const std::vector<int32_t>* rows, int64_t count, int64_t d,
                      const std::vector<T>& v, int64_t k, const std::vector<T>& users) {
  const int64_t stride = bilinear_stride<T>(k);
  Outcome<T> out;
  out.points.assign(size_t(count * stride), T(7));
  out.d_points.assign(size_t(count * stride), T(7));
  out.d_users.assign(size_t(b.voters * stride), T(7));
  out.dv.assign(size_t(k * d), T(7));
  const int32_t* list = rows ? rows->data() : nullptr;
  bilinear_project<T>(context, x.data(), list, count, d, v.data(), k, out.points.data(), stride);
  out.loss = bilinear_loss<T>(context, b, count, out.points.data(), users.data(), stride, out.d_points.data(), out.d_users.data());
  bilinear_project_back<T>(context, x.data(), list, count, d, out.d_points.data(), stride, k, out.dv.data());
  return out;
}

template <class T>
std::vector<T> users_of(Random& random, int64_t voters, int64_t k) {
  const int64_t stride = bilinear_stride<T>(k);
  std::vector<T> users(size_t(voters * stride), T(0));
  for (int64_t u = 0; u < voters; ++u)
    for (int64_t c = 0; c < k; ++c) users[size_t(u * stride + c)] = T(random.normal());
  return users;
}

template <class T>
void against_the_reference(double tolerance) {
  Machine reference(Isa::reference, 1);
  unsigned seed = 1;
  for (int64_t d : {1, 3, 16, 37, 70, 131})
    for (int64_t k : {1, 2, 5, 7, 9, 17, 33})
      for (int kind = 0; kind < 4; ++kind) {
        Random random(seed++);
        const int64_t n = 1 + random.below(300), items = kind == 3 ? 1 + random.below(n) : n;
        const Votes votes = make_votes(random, 9, 40, items, kind == 1, kind == 2 ? 0.7 : 0, kind != 0);
        const std::vector<float> x = random.normals(n * d);
        std::vector<int32_t> rows;
        for (int64_t i = 0; i < items; ++i) rows.push_back(int32_t(random.below(n)));
        const auto* list = kind == 3 ? &rows : nullptr;
        const std::vector<T> v = values<T>(random, k * d, 1 / std::sqrt(double(d))), users = users_of<T>(random, 9, k);
        const Ballots b = votes.view();
        const Outcome<T> expected = everything<T>(reference.context, b, x, list, items, d, v, k, users);
        on_every_machine([&](Context& context) {
          const Outcome<T> found = everything<T>(context, b, x, list, items, d, v, k, users);
          const std::string where = name_of(context) + " d " + std::to_string(d) + " k " + std::to_string(k) + " kind " + std::to_string(kind);
          CHECK_SAY(close(found.points, expected.points, tolerance), where + " points");
          CHECK_SAY(close(found.d_points, expected.d_points, 20 * tolerance), where + " d_points");
          CHECK_SAY(close(found.d_users, expected.d_users, 50 * tolerance), where + " d_users");
          CHECK_SAY(close(found.dv, expected.dv, 200 * tolerance), where + " dv");
          CHECK_SAY(std::abs(found.loss - expected.loss) <= 10 * tolerance * (1 + expected.loss), where + " loss");
        });
      }
}

}  // namespace

TEST(bilinear_matches_the_reference_in_float) { against_the_reference<float>(2e-6); }
TEST(bilinear_matches_the_reference_in_double) { against_the_reference<double>(1e-14); }

TEST(bilinear_gradients_are_those_of_finite_differences) {
  for (Isa isa : instruction_sets())
    for (int kind = 0; kind < 3; ++kind) {
      Machine machine(isa, 2);
      Random random(unsigned(kind) + 40);
      const int64_t n = 12, d = 5, k = 3, stride = bilinear_stride<double>(k);
      const Votes votes = make_votes(random, 4, 12, n, kind == 1, kind == 2 ? 1.3 : 0, true);
      const Ballots b = votes.view();
      const std::vector<float> x = random.normals(n * d);
      std::vector<double> v = values<double>(random, k * d), users = users_of<double>(random, 4, k);
      const Outcome<double> at = everything<double>(machine.context, b, x, nullptr, n, d, v, k, users);
      const double h = 1e-5;
      const auto slope = [&](double& parameter) {
        const double kept = parameter;
        double side[2];
        for (int i = 0; i < 2; ++i) {
          parameter = kept + (i ? -h : h);
          side[i] = everything<double>(machine.context, b, x, nullptr, n, d, v, k, users).loss;
        }
        parameter = kept;
        return (side[0] - side[1]) / (2 * h);
      };
      for (size_t i = 0; i < v.size(); ++i) CHECK_NEAR(at.dv[i], slope(v[i]), 1e-7);
      for (int64_t u = 0; u < 4; ++u)
        for (int64_t c = 0; c < k; ++c) CHECK_NEAR(at.d_users[size_t(u * stride + c)], slope(users[size_t(u * stride + c)]), 1e-7);
    }
}

TEST(bilinear_does_not_depend_on_threads) {
  for (Isa isa : instruction_sets()) {
    Random random(5);
    const int64_t n = 700, d = 33, k = 9;
    const Votes votes = make_votes(random, 60, 80, n, false, 0, true);
    const Ballots b = votes.view();
    const std::vector<float> x = random.normals(n * d), v = values<float>(random, k * d), users = users_of<float>(random, 60, k);
    Machine one(isa, 1), three(isa, 3);
    const Outcome<float> a = everything<float>(one.context, b, x, nullptr, n, d, v, k, users);
    const Outcome<float> c = everything<float>(three.context, b, x, nullptr, n, d, v, k, users);
    CHECK_BITS("points", c.points, a.points);
    CHECK_BITS("d_points", c.d_points, a.d_points);
    CHECK_BITS("d_users", c.d_users, a.d_users);
    CHECK_BITS("dv", c.dv, a.dv);
    CHECK(a.loss == c.loss);
    const double alone = bilinear_loss<float>(three.context, b, n, a.points.data(), users.data(), bilinear_stride<float>(k), nullptr, nullptr);
    CHECK_NEAR(alone, a.loss, 1e-9 * a.loss);
  }
}

TEST(bilinear_newton_ends_where_every_gradient_vanishes) {
  on_every_machine([](Context& context) {
    for (int64_t k : {1, 4, 9, 20})
      for (int kind = 0; kind < 3; ++kind) {
        Random random(unsigned(k) + unsigned(kind));
        const int64_t n = 40, voters = 7, stride = bilinear_stride<double>(k + 1);
        const Votes votes = make_votes(random, voters, 30, n, kind == 1, kind == 2 ? 0.5 : 0, true);
        const Ballots b = votes.view();
        const std::vector<double> points = users_of<double>(random, n, k + 1);
        std::vector<double> users(size_t(voters * stride), 0.0), factors(size_t(voters * k * k)), d_points(size_t(n * stride)), d_users(users.size());
        for (int64_t u = 0; u < voters; ++u) users[size_t(u * stride + k)] = 1;
        const int steps = bilinear_newton(context, b, points.data(), users.data(), stride, k, {0.7, 1e-16, 100}, factors.data());
        CHECK(steps >= 0 && steps < 20);
        bilinear_loss<double>(context, b, n, points.data(), users.data(), stride, d_points.data(), d_users.data());
        std::vector<double> gradient(static_cast<size_t>(stride)), hessian(static_cast<size_t>(k * stride));
        for (int64_t u = 0; u < voters; ++u) {
          const double* c = users.data() + u * stride;
          CHECK(c[k] == 1);
          for (int64_t a = 0; a < k; ++a) CHECK_NEAR(d_users[size_t(u * stride + a)] + 0.7 * c[a], 0, 1e-6);
          kernels_of(Isa::reference).bilinear_f64.curvature(b, u, points.data(), c, stride, k, gradient.data(), hessian.data());
          const double* l = factors.data() + u * k * k;
          for (int64_t i = 0; i < k; ++i)
            for (int64_t j = 0; j < k; ++j) {
              double product = 0;
              for (int64_t p = 0; p < k; ++p) product += l[i * k + p] * l[j * k + p];
              CHECK_NEAR(product, hessian[size_t(i * stride + j)] + (i == j ? 0.7 : 0), 1e-6);
            }
        }
      }
  });
}

TEST(bilinear_hessian_is_the_slope_of_the_gradient) {
  for (Isa isa : instruction_sets())
    for (int kind = 0; kind < 3; ++kind) {
      Random random(unsigned(kind) + 9);
      const int64_t k = 5, n = 20, stride = bilinear_stride<double>(k);
      const Votes votes = make_votes(random, 1, 25, n, kind == 1, kind == 2 ? 0.9 : 0, true);
      const Ballots b = votes.view();
      const std::vector<double> points = users_of<double>(random, n, k), c = users_of<double>(random, 1, k);
      const auto& kernel = kernels_of(isa).bilinear_f64.curvature;
      std::vector<double> g(static_cast<size_t>(stride)), h(static_cast<size_t>(k * stride)), up(g), down(g), unused(h);
      kernel(b, 0, points.data(), c.data(), stride, k, g.data(), h.data());
      for (int64_t a = 0; a < k; ++a) {
        std::vector<double> moved = c;
        moved[size_t(a)] += 1e-5;
        kernel(b, 0, points.data(), moved.data(), stride, k, up.data(), unused.data());
        moved[size_t(a)] -= 2e-5;
        kernel(b, 0, points.data(), moved.data(), stride, k, down.data(), unused.data());
        for (int64_t e = 0; e < k; ++e) CHECK_NEAR(h[size_t(a * stride + e)], (up[size_t(e)] - down[size_t(e)]) / 2e-5, 1e-7);
      }
    }
}

TEST(bilinear_adam_takes_each_row_by_its_own_steps) {
  on_every_machine([](Context& context) {
    const int64_t n = 5, stride = 16;
    Random random(3);
    std::vector<float> p = random.normals(n * stride), m(p.size(), 0.f), v(p.size(), 0.f);
    std::vector<int32_t> steps(static_cast<size_t>(n), 0);
    std::vector<double> dp = as_doubles(p), dm(p.size(), 0), dv(p.size(), 0);
    for (int t = 0; t < 6; ++t) {
      std::vector<int32_t> rows;
      for (int32_t i = 0; i < n; ++i)
        if ((t + i) % 2) rows.push_back(i);
      const std::vector<float> g = random.normals(int64_t(rows.size()) * stride), share = random.normals(int64_t(rows.size()));
      const AdamRows a{p.data(), m.data(), v.data(), steps.data(), stride, stride - 1, rows.data(), int64_t(rows.size()), g.data(), share.data(), 0.3f, 0.5f, 0.01, 0.9, 0.99, 1e-8};
      bilinear_adam(context, a);
      for (size_t r = 0; r < rows.size(); ++r)
        for (int64_t c = 0; c < stride; ++c) {
          const size_t at = size_t(rows[r] * stride + c);
          const double own = c == stride - 1 ? 0 : 0.5 * g[r * size_t(stride) + size_t(c)] + 0.3 * share[r] * dp[at], count = steps[size_t(rows[r])];
          dm[at] = 0.9 * dm[at] + 0.1 * own;
          dv[at] = 0.99 * dv[at] + 0.01 * own * own;
          dp[at] -= 0.01 * (dm[at] / (1 - std::pow(0.9, count))) / (std::sqrt(dv[at] / (1 - std::pow(0.99, count))) + 1e-8);
        }
    }
    CHECK(steps[0] == 3 && steps[1] == 3);
    for (size_t i = 0; i < p.size(); ++i) CHECK_NEAR(p[i], dp[i], 1e-4);
  });
}

TEST(bilinear_of_nothing) {
  on_every_machine([](Context& context) {
    const std::vector<int32_t> starts{0, 0, 0};
    Ballots b;
    b.voters = 2;
    b.voter_start = starts.data();
    std::vector<float> points(16), users(32, 1.f), d_points(16, 3.f), d_users(32, 3.f);
    CHECK(bilinear_loss<float>(context, b, 1, points.data(), users.data(), 16, d_points.data(), d_users.data()) == 0);
    for (float g : d_points) CHECK(g == 0);
    for (float g : d_users) CHECK(g == 0);
    std::vector<float> dv(3, 1.f);
    bilinear_project<float>(context, nullptr, nullptr, 0, 3, dv.data(), 1, nullptr, 16);
    bilinear_project_back<float>(context, nullptr, nullptr, 0, 3, nullptr, 16, 1, dv.data());
    for (float g : dv) CHECK(g == 0);
  });
}
