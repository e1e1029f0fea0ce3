// Every loss against central differences, and its behaviour at the edges; formulas are in test/losses.test.ts.
#include "ops/preference/preference.h"

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "check.h"

using namespace pluralign;
using namespace pluralign::preference;

namespace {

using Values = std::vector<double>;

struct PairData {
  explicit PairData(int64_t n, unsigned seed = 1) : rows(n), row(n), d_chosen(n), d_rejected(n) {
    std::mt19937_64 engine(seed);
    std::uniform_real_distribution<double> u(0, 1);
    for (int64_t i = 0; i < n; ++i) {
      chosen_tokens.push_back(1 + std::floor(9 * u(engine)));
      rejected_tokens.push_back(1 + std::floor(9 * u(engine)));
      chosen.push_back(-chosen_tokens[i] * (0.3 + 2 * u(engine)));
      rejected.push_back(-rejected_tokens[i] * (0.3 + 2 * u(engine)));
      ref_chosen.push_back(chosen[i] + 6 * (u(engine) - 0.5));
      ref_rejected.push_back(rejected[i] + 6 * (u(engine) - 0.5));
      weights.push_back(i == 2 ? 0 : 0.2 + 3 * u(engine));
    }
  }
  double loss(PairLoss type, const PairOptions& options) {
    const Pairs pairs{rows, chosen.data(), rejected.data(), ref_chosen.data(), ref_rejected.data(), chosen_tokens.data(),
                      rejected_tokens.data(), weights.data(), nullptr};
    const PairTerm terms[] = {{type, 0.7}};
    return pair_loss(pairs, terms, options, {row.data(), d_chosen.data(), d_rejected.data()});
  }
  int64_t rows;
  Values chosen, rejected, ref_chosen, ref_rejected, chosen_tokens, rejected_tokens, weights, row, d_chosen, d_rejected;
};

void check_differences(Values& x, const Values& gradient, const std::function<double()>& loss) {
  constexpr double h = 1e-4;
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = x[i];
    x[i] = value + h;
    const double up = loss();
    x[i] = value - h;
    const double down = loss();
    x[i] = value;
    const double slope = (up - down) / (2 * h);
    CHECK_NEAR(gradient[i], slope, 1e-6 * std::max(0.1, std::abs(slope)));
  }
}

std::vector<PairLoss> pair_types() {
  std::vector<PairLoss> types;
  for (int32_t t = 0; t <= static_cast<int32_t>(PairLoss::orpo); ++t) types.push_back(static_cast<PairLoss>(t));
  return types;
}

}  // namespace

TEST(preference_pair_gradients) {
  for (PairLoss type : pair_types())
    for (int64_t n : {0, 1, 3, 8}) {
      PairOptions o;
      o.beta = 0.3;
      o.label_smoothing = 0.02;
      o.delta = 0.4;
      PairData data(n, 10 + static_cast<unsigned>(n));
      const double loss = data.loss(type, o);
      CHECK(n == 0 ? loss == 0 : std::isfinite(loss));
      const Values d_chosen = data.d_chosen, d_rejected = data.d_rejected;
      check_differences(data.chosen, d_chosen, [&] { return data.loss(type, o); });
      check_differences(data.rejected, d_rejected, [&] { return data.loss(type, o); });
    }
}

TEST(preference_pair_divergences) {
  for (Divergence divergence : {Divergence::forward_kl, Divergence::js, Divergence::alpha})
    for (PairLoss type : {PairLoss::sigmoid, PairLoss::ipo, PairLoss::sigmoid_norm, PairLoss::discopop}) {
      PairOptions o;
      o.divergence = divergence;
      PairData data(5, 3);
      data.loss(type, o);
      const Values d_chosen = data.d_chosen;
      check_differences(data.chosen, d_chosen, [&] { return data.loss(type, o); });
    }
}

TEST(preference_pair_edges) {
  for (PairLoss type : pair_types()) {
    PairOptions o;
    o.beta = 1;
    o.label_smoothing = 0.1;
    PairData data(4);
    for (int i = 0; i < 4; ++i) {
      data.chosen[i] = data.ref_chosen[i] + (i & 1 ? 1e4 : -1e4);
      data.rejected[i] = data.ref_rejected[i] + (i & 2 ? 1e4 : -1e4);
    }
    bool finite = std::isfinite(data.loss(type, o));
    for (int i = 0; i < 4; ++i) finite = finite && std::isfinite(data.d_chosen[i]) && std::isfinite(data.d_rejected[i]);
    CHECK(finite);
    data.chosen[1] = std::numeric_limits<double>::quiet_NaN();
    CHECK(std::isnan(data.loss(type, o)));
  }
}

TEST(preference_reward_gradients) {
  PairData data(7);
  auto loss = [&] {
    return reward_loss(7, data.chosen.data(), data.rejected.data(), data.ref_chosen.data(), data.weights.data(), 0.01, 0,
                       data.row.data(), data.d_chosen.data(), data.d_rejected.data());
  };
  loss();
  const Values d_chosen = data.d_chosen, d_rejected = data.d_rejected;
  check_differences(data.chosen, d_chosen, loss);
  check_differences(data.rejected, d_rejected, loss);
}

TEST(preference_tie_gradients) {
  const uint8_t tied[] = {0, 1, 0, 1, 1, 0, 0};
  for (TieModel model : {TieModel::rao_kupper, TieModel::davidson}) {
    PairData data(7, 4);
    Values log_nu{0.6}, kept_slope(1);
    auto loss = [&] {
      return tie_loss(7, data.chosen.data(), tied, data.weights.data(), model, std::exp(log_nu[0]), 0, data.row.data(),
                      data.d_chosen.data(), kept_slope.data());
    };
    loss();
    const Values gradient = data.d_chosen, slope = kept_slope;
    check_differences(data.chosen, gradient, loss);
    check_differences(log_nu, slope, loss);
  }
}

TEST(preference_tie_probabilities_sum_to_one) {
  const uint8_t decided = 0, tie = 1;
  for (TieModel model : {TieModel::rao_kupper, TieModel::davidson})
    for (double nu : {1.0001, 1.5, 20.0})
      for (double d : {-700.0, -3.0, 0.0, 0.4, 700.0}) {
        const double back = -d;
        double row, slope, parameter;
        const auto p = [&](const double& x, const uint8_t& t) {
          return std::exp(-tie_loss(1, &x, &t, nullptr, model, nu, 0, &row, &slope, &parameter));
        };
        CHECK_NEAR(p(d, decided) + p(back, decided) + p(d, tie), 1, 1e-12);
        CHECK(std::isfinite(slope) && std::isfinite(parameter));
      }
}

TEST(preference_ranking_gradients) {
  // A full ranking, the best of four, one response alone, none ranked.
  const std::vector<int32_t> offsets{0, 5, 9, 10, 12}, starts{0, 5, 6, 7, 7}, ranking{3, 0, 4, 1, 2, 2, 0};
  PairData data(12, 5);
  for (RankingLoss type : {RankingLoss::plackett_luce, RankingLoss::best, RankingLoss::lipo}) {
    Values row(4), gradient(12);
    const Rankings rankings{4, offsets.data(), starts.data(), ranking.data(), data.chosen.data(), data.ref_chosen.data(),
                            data.weights.data()};
    auto loss = [&] { return ranking_loss(rankings, type, 0.2, 0, row.data(), gradient.data()); };
    loss();
    CHECK(row[2] == 0 && row[3] == 0);
    const Values kept = gradient;
    check_differences(data.chosen, kept, loss);
  }
}

TEST(preference_plackett_luce_of_two_is_dpo) {
  PairData data(1);
  PairOptions o;
  data.loss(PairLoss::sigmoid, o);
  const Values scores{data.rejected[0], data.chosen[0]}, refs{data.ref_rejected[0], data.ref_chosen[0]};
  const std::vector<int32_t> offsets{0, 2}, starts{0, 2}, ranking{1, 0};
  Values row(1), gradient(2);
  const Rankings rankings{1, offsets.data(), starts.data(), ranking.data(), scores.data(), refs.data(), nullptr};
  const double loss = ranking_loss(rankings, RankingLoss::plackett_luce, o.beta, 0, row.data(), gradient.data());
  CHECK_NEAR(0.7 * loss, data.row[0], 1e-14);
  CHECK_NEAR(0.7 * gradient[1], data.d_chosen[0], 1e-14);
}

TEST(preference_unpaired_gradients) {
  for (UnpairedLoss type : {UnpairedLoss::kto, UnpairedLoss::bco, UnpairedLoss::apo_zero_unpaired}) {
    PairData data(5);
    const uint8_t labels[] = {1, 0, 0, 1, 1};
    const Unpaired unpaired{5, data.chosen.data(), data.ref_chosen.data(), labels, data.weights.data()};
    UnpairedOptions o;
    o.desirable = 1.5;
    o.undesirable = 0.7;
    o.baseline = 0.6;
    auto loss = [&] { return unpaired_loss(unpaired, type, o, data.row.data(), data.d_chosen.data()); };
    loss();
    const Values gradient = data.d_chosen;
    check_differences(data.chosen, gradient, loss);
  }
}

TEST(preference_sft_gradients) {
  PairData data(5);
  auto loss = [&] {
    return sft_loss(5, data.chosen.data(), data.chosen_tokens.data(), data.weights.data(), 0, data.row.data(),
                    data.d_chosen.data());
  };
  loss();
  const Values gradient = data.d_chosen;
  check_differences(data.chosen, gradient, loss);
  CHECK(sft_loss(0, nullptr, nullptr, nullptr, 0, nullptr, nullptr) == 0);
}
