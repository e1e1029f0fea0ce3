// The whole decoder against float64: scores, the gradient of every weight and factor, and what they must not depend on.
#include "tiny_model.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

const std::vector<TinyOptions> kModels{{0, false, false, true, true, 0}, {3, true, true, false, true, 0}, {5, true, false, true, true, 0}};

// Central differences of Σ gradient · score along random directions of every factor, and along single elements.
struct Slope {
  std::string name;
  std::vector<std::pair<size_t, double>> direction;
  double expected;
};

std::vector<Slope> slopes_of(const Tiny& tiny, const TinyPack& p, bool reward) {
  std::vector<double> values = doubles(tiny.values);
  const auto loss = [&] {
    double total = 0;
    const std::vector<double> out = tiny.score(p.pack(), values, reward);
    for (size_t i = 0; i < out.size(); ++i)
      if (p.grads[size_t(std::upper_bound(p.starts.begin(), p.starts.end(), p.rows[i]) - p.starts.begin() - 1)]) total += out[i] * p.gradient[i];
    return total;
  };
  Random random(5);
  std::vector<Slope> slopes;
  for (size_t f = 0; f < tiny.factors.size(); ++f) {
    const Factor& factor = tiny.factors[f];
    std::string name = "factor " + std::to_string(f);
    for (const auto& [n, index] : tiny.weights)
      if (index == int(f)) name = n;
    for (int round = 0; round < 3; ++round) {
      Slope s{name, {}, 0};
      const int64_t n = factor.rows * factor.cols;
      if (round == 0)
        for (int64_t i = 0; i < n; ++i) s.direction.emplace_back(size_t(factor.offset + i), random.normal() / std::sqrt(double(n)));
      else s.direction.emplace_back(size_t(factor.offset + random.below(n)), 1.0);
      const std::vector<double> before = values;
      constexpr double h = 1e-5;
      for (auto [i, d] : s.direction) values[i] = before[i] + h * d;
      s.expected = loss();
      for (auto [i, d] : s.direction) values[i] = before[i] - h * d;
      s.expected = (s.expected - loss()) / (2 * h);
      values = before;
      slopes.push_back(std::move(s));
    }
  }
  return slopes;
}

void check_gradients(bool reward, size_t read_every = 1) {
  for (const TinyOptions& options : kModels) {
    Tiny tiny(options);
    const TinyPack all = forest_pack(!reward), p = read_every > 1 ? all.reading(1, read_every) : all;
    const std::vector<double> expected = tiny.score(p.pack(), doubles(tiny.values), reward);
    const std::vector<Slope> slopes = slopes_of(tiny, p, reward);
    const Bank bank = tiny.bank();
    on_every_machine([&](Context& context) {
      const std::string where = name_of(context) + " window " + std::to_string(options.window);
      Model model(tiny.config, Weights::none(tiny.config), false);
      std::vector<float> kept;
      for (bool checkpoint : {false, true}) {
        const std::vector<float> out = score(model, context, p, &bank, {reward, true, checkpoint, 0});
        CHECK_CLOSE(where, out, expected, 2e-5, 1e-5);
        std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
        model.backward(context, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
        if (checkpoint) {
          CHECK_BITS(where + " checkpointed", tiny.gradients, kept);
          continue;
        }
        kept = tiny.gradients;
        for (const Slope& s : slopes) {
          double slope = 0, size = 0;
          for (auto [i, d] : s.direction) {
            slope += tiny.gradients[i] * d;
            size += d * d * tiny.gradients[i] * tiny.gradients[i];
          }
          if (!CHECK_NEAR(slope, s.expected, 1e-4 + 1e-4 * std::sqrt(size * double(s.direction.size())))) std::printf("  %s, %s\n", where.c_str(), s.name.c_str());
        }
      }
    });
  }
}

}  // namespace

TEST(decoder_logps_and_gradients_match_float64) { check_gradients(false); }
TEST(decoder_rewards_and_gradients_match_float64) { check_gradients(true); }
TEST(decoder_logps_of_some_rows_and_gradients_match_float64) { check_gradients(false, 2); }
TEST(decoder_rewards_of_few_rows_and_gradients_match_float64) { check_gradients(true, 7); }

TEST(decoder_rows_score_alike_whichever_are_read) {
  for (Isa isa : instruction_sets())
    for (bool bfloat16 : {false, true})
      for (int64_t window : {0, 3}) {
        TinyOptions options = kModels[window ? 1 : 2];
        options.dropout = 0.3f;
        Tiny tiny(options);
        const Bank bank = tiny.bank();
        Machine one(isa, 1), three(isa, 3);
        Model model(tiny.config, Weights::none(tiny.config), bfloat16);
        // Segments longer than a tile of queries, and short ones.
        for (const TinyPack& all : {forest_pack(true), TinyPack({-1, 0, 0, -1, 3}, {50, 40, 3, 2, 70}, {0, 0, 0, 1, 1}, 5, 9)})
          for (auto [first, step] : {std::pair<size_t, size_t>{1, 2}, {2, 5}, {4, 100}}) {
            const TinyPack some = all.reading(first, step);
            TinyPack whole = all;  // with the same targets, and no gradient where nothing is read
            std::fill(whole.gradient.begin(), whole.gradient.end(), 0.f);
            for (size_t i = 1; i < some.rows.size(); ++i) {
              whole.targets[size_t(some.rows[i])] = some.targets[i];
              whole.gradient[size_t(some.rows[i])] = some.gradient[i];
            }
            TinyPack once = some;
            once.gradient[0] = 0;  // of the row that stands twice
            const std::string where = std::string(isa_name(isa)) + (bfloat16 ? " bf16 " : " ") + std::to_string(step);
            const ScoreRequest request{false, true, false, 7};
            const auto gradients = [&](Context& context, const TinyPack& p) {
              std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
              model.backward(context, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
              return tiny.gradients;
            };
            const std::vector<float> full = score(model, one.context, whole, &bank, request), expected = gradients(one.context, whole);
            for (bool checkpoint : {false, true})
              for (Machine* machine : {&one, &three}) {
                const std::vector<float> out = score(model, machine->context, once, &bank, {false, true, checkpoint, 7});
                for (size_t i = 1; i < out.size(); ++i) CHECK_BITS(where, std::vector<float>{out[i]}, std::vector<float>{full[size_t(once.rows[i])]});
                CHECK_CLOSE(where + " gradients", gradients(machine->context, once), expected, bfloat16 ? 0.05 : 2e-5, bfloat16 ? 0.02 : 1e-4);
              }
          }
      }
}

TEST(decoder_every_weight_and_factor_has_a_gradient) {
  Tiny tiny(kModels[2]);
  const Bank bank = tiny.bank();
  Machine machine(Isa::generic, 1);
  Model model(tiny.config, Weights::none(tiny.config), false);
  const TinyPack p = forest_pack(true);
  score(model, machine.context, p, &bank, {false, true, false, 0});
  model.backward(machine.context, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
  for (int f = 0; f + 2 < int(tiny.factors.size()); ++f) {  // the last two are reward heads
    float most = 0;
    for (float g : tiny.gradient_of(f, f + 1)) most = std::max(most, std::abs(g));
    if (!CHECK(most > 1e-6f)) std::printf("  factor %d\n", f);
  }
}

TEST(decoder_bfloat16_is_near_float64) {
  for (const TinyOptions& options : kModels) {
    Tiny tiny(options);
    const TinyPack p = forest_pack(true);
    const Bank bank = tiny.bank();
    const std::vector<double> expected = tiny.score(p.pack(), doubles(tiny.values));
    std::vector<float> exact;
    on_every_machine([&](Context& context) {
      for (bool bfloat16 : {false, true}) {
        Model model(tiny.config, Weights::none(tiny.config), bfloat16);
        const std::vector<float> out = score(model, context, p, &bank, {false, true, false, 0});
        CHECK_CLOSE(name_of(context), out, expected, bfloat16 ? 0.15 : 2e-5, 1e-5);
        std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
        model.backward(context, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
        if (!bfloat16) {
          exact = tiny.gradients;
          continue;
        }
        double ab = 0, aa = 0, bb = 0;
        for (size_t i = 0; i < exact.size(); ++i) {
          ab += double(exact[i]) * tiny.gradients[i];
          aa += double(exact[i]) * exact[i];
          bb += double(tiny.gradients[i]) * tiny.gradients[i];
        }
        CHECK_NEAR(ab / std::sqrt(aa * bb), 1, 2e-3);
        CHECK_NEAR(std::sqrt(bb / aa), 1, 0.05);
      }
    });
  }
}

TEST(decoder_rows_do_not_depend_on_the_pack_or_threads) {
  for (Isa isa : instruction_sets())
    for (bool bfloat16 : {false, true}) {
      TinyOptions options = kModels[2];
      options.dropout = 0.3f;
      Tiny tiny(options);
      const Bank bank = tiny.bank();
      Machine one(isa, 1), three(isa, 3);
      Model model(tiny.config, Weights::none(tiny.config), bfloat16);
      const TinyPack p = forest_pack(true);
      for (uint32_t seed : {0u, 7u}) {
        const std::vector<float> together = score(model, three.context, p, &bank, {false, false, false, seed});
        CHECK_BITS(isa_name(isa), score(model, one.context, p, &bank, {false, false, false, seed}), together);
        // Each segment with its path alone, in segments of the same keys.
        for (size_t s = 0; s < p.parents.size(); ++s) {
          std::vector<size_t> path;
          for (int32_t at = int32_t(s); at >= 0; at = p.parents[size_t(at)]) path.insert(path.begin(), size_t(at));
          TinyPack alone({}, {}, {}, 0, 0);
          for (size_t at : path) {
            alone.parents.push_back(int32_t(alone.parents.size()) - 1);
            alone.adapters.push_back(p.adapters[at]);
            alone.grads.push_back(0);
            alone.keys.push_back(p.keys[at]);
            for (int32_t r = p.starts[at]; r < p.starts[at + 1]; ++r) {
              alone.rows.push_back(int32_t(alone.tokens.size()));
              alone.tokens.push_back(p.tokens[size_t(r)]);
              alone.targets.push_back(p.targets[size_t(r)]);
            }
            alone.starts.push_back(int32_t(alone.tokens.size()));
          }
          const std::vector<float> out = score(model, one.context, alone, &bank, {false, false, false, seed});
          const int64_t n = p.starts[s + 1] - p.starts[s];
          CHECK_BITS(std::string(isa_name(isa)) + " segment " + std::to_string(s), std::vector<float>(out.end() - n, out.end()),
                     std::vector<float>(together.begin() + p.starts[s], together.begin() + p.starts[s] + n));
        }
      }
    }
}

TEST(decoder_kept_buffers_serve_packs_of_every_size) {
  Tiny tiny(kModels[1]);
  const Bank bank = tiny.bank();
  const TinyPack packs[] = {TinyPack({-1}, {2}, {0}, 1, 11), forest_pack(true), TinyPack({-1, 0}, {30, 9}, {1, 1}, 2, 12), TinyPack({-1}, {1}, {-1}, 1, 13)};
  on_every_machine([&](Context& context) {
    Model used(tiny.config, Weights::none(tiny.config), false);
    for (int i : {0, 1, 0, 2, 3, 1, 2, 0})
      for (bool checkpoint : {false, true}) {
        std::vector<std::vector<float>> results;
        Model fresh(tiny.config, Weights::none(tiny.config), false);
        for (Model* model : {&used, &fresh}) {
          std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
          results.push_back(score(*model, context, packs[i], &bank, {false, true, checkpoint, 0}));
          model->backward(context, bank, packs[i].gradient.data(), int64_t(packs[i].gradient.size()), Cancel());
          results.push_back(tiny.gradients);
        }
        CHECK_BITS(name_of(context) + " scores", results[0], results[2]);
        CHECK_BITS(name_of(context) + " gradients", results[1], results[3]);
      }
  });
}

TEST(decoder_gradients_add_up_over_packs) {
  Tiny tiny(kModels[0]);
  const Bank bank = tiny.bank();
  Machine machine(Isa::generic, 1);
  Model model(tiny.config, Weights::none(tiny.config), false);
  const auto run = [&](const TinyPack& p) {
    score(model, machine.context, p, &bank, {false, true, false, 0});
    model.backward(machine.context, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
  };
  // Two trees in one pack, and each in its own.
  const TinyPack both({-1, 0, -1, 2}, {4, 3, 2, 5}, {0, 0, 1, 1}, 4, 21);
  run(both);
  const std::vector<float> together = tiny.gradients;
  std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
  for (int half = 0; half < 2; ++half) {
    TinyPack p({-1, 0}, {half ? 2 : 4, half ? 5 : 3}, {half, half}, 2, 0);
    std::copy_n(both.tokens.begin() + half * 7, 7, p.tokens.begin());
    std::copy_n(both.targets.begin() + half * 7, 7, p.targets.begin());
    std::copy_n(both.gradient.begin() + half * 7, 7, p.gradient.begin());
    run(p);
  }
  CHECK_CLOSE("two packs", tiny.gradients, together, 1e-5, 1e-4);
}

TEST(decoder_shares_of_a_large_pack) {
  // Trees of two branches, enough for several shares, under both adapters and the base, with the last ones free of gradients.
  constexpr int kTrees = 66, kFree = 12;
  std::vector<int32_t> parents, lengths, adapters;
  for (int i = 0; i < kTrees; ++i)
    for (int s = 0; s < 3; ++s) {
      parents.push_back(s == 0 ? -1 : 3 * i);
      lengths.push_back(s == 0 ? 3 + i % 4 : 2 + (i + s) % 5);
      adapters.push_back(i % 11 == 10 ? -1 : i * 3 / kTrees % 2);
    }
  const TinyPack all(parents, lengths, adapters, 3 * (kTrees - kFree), 31);
  for (const TinyOptions& options : kModels) {
    Tiny tiny(options);
    const Bank bank = tiny.bank();
    for (Isa isa : instruction_sets()) {
      std::vector<float> scores, sums;
      for (int threads : {1, 2, 3, 8}) {
        Machine machine(isa, threads);
        Model model(tiny.config, Weights::none(tiny.config), false);
        for (bool checkpoint : {false, true}) {
          std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
          const std::vector<float> out = score(model, machine.context, all, &bank, {false, true, checkpoint, 0});
          // What needs no gradient may be scored in between.
          score(model, machine.context, TinyPack(parents, lengths, adapters, 0, 32), &bank);
          model.backward(machine.context, bank, all.gradient.data(), int64_t(all.gradient.size()), Cancel());
          if (scores.empty()) {
            scores = out;
            sums = tiny.gradients;
          }
          CHECK_BITS(name_of(machine.context) + " scores", out, scores);
          CHECK_BITS(name_of(machine.context) + " gradients", tiny.gradients, sums);
        }
      }
      // Each tree in a pack of its own.
      Machine machine(isa, 1);
      Model model(tiny.config, Weights::none(tiny.config), false);
      std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
      for (size_t t = 0; t < size_t(kTrees); ++t) {
        TinyPack one({-1, 0, 0}, {lengths.begin() + int(3 * t), lengths.begin() + int(3 * t + 3)}, std::vector<int32_t>(3, adapters[3 * t]), t < kTrees - kFree ? 3 : 0, 0);
        const auto first = all.starts[3 * t];
        std::copy_n(all.tokens.begin() + first, one.tokens.size(), one.tokens.begin());
        std::copy_n(all.targets.begin() + first, one.targets.size(), one.targets.begin());
        std::copy_n(all.gradient.begin() + first, one.gradient.size(), one.gradient.begin());
        const std::vector<float> out = score(model, machine.context, one, &bank, {false, true, false, 0});
        CHECK_BITS(std::string(isa_name(isa)) + " tree", out, std::vector<float>(scores.begin() + first, scores.begin() + first + int(out.size())));
        model.backward(machine.context, bank, one.gradient.data(), int64_t(one.gradient.size()), Cancel());
      }
      CHECK_CLOSE("shares", sums, tiny.gradients, 2e-4, 1e-3);
    }
  }
}

TEST(decoder_shares_of_packs_of_any_size_after_one_another) {
  // Gradients that are large enough to be cleared by several threads, in fewer shares than threads and then in more.
  TinyOptions options = kModels[0];
  options.vocabulary = 14000;
  const auto trees = [](int n) {
    std::vector<int32_t> parents(size_t(n), -1), lengths, adapters(size_t(n), 0);
    for (int i = 0; i < n; ++i) lengths.push_back(11 + i % 5);
    return TinyPack(parents, lengths, adapters, size_t(n), 7);
  };
  const TinyPack few = trees(30), many = trees(80);
  Tiny tiny(options);
  const Bank bank = tiny.bank();
  std::vector<float> first;
  for (int threads : {1, 4}) {
    Machine machine(Isa::generic, threads);
    Model model(tiny.config, Weights::none(tiny.config), false);
    for (const TinyPack* p : {&few, &many, &few}) {
      std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
      score(model, machine.context, *p, &bank, {false, true, false, 0});
      model.backward(machine.context, bank, p->gradient.data(), int64_t(p->gradient.size()), Cancel());
      if (p != &many) continue;
      if (first.empty()) first = tiny.gradients;
      CHECK_BITS(name_of(machine.context) + " gradients", tiny.gradients, first);
    }
  }
}

TEST(decoder_dropout_is_one_function_forward_and_backward) {
  TinyOptions options = kModels[0];
  options.dropout = 0.4f;
  Tiny tiny(options), dry(kModels[0]);
  const Bank bank = tiny.bank(), dry_bank = dry.bank();
  const TinyPack p = forest_pack(true);
  on_every_machine([&](Context& context) {
    Model model(tiny.config, Weights::none(tiny.config), false);
    const auto at = [&](uint32_t seed) { return score(model, context, p, &bank, {false, false, false, seed}); };
    CHECK_BITS(name_of(context) + " off", at(0), score(model, context, p, &dry_bank));
    CHECK_BITS(name_of(context) + " again", at(5), at(5));
    CHECK(at(5) != at(6) && at(5) != at(0));
    std::vector<float> kept;
    for (bool checkpoint : {false, true}) {
      score(model, context, p, &bank, {false, true, checkpoint, 5});
      std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
      model.backward(context, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
      if (checkpoint) CHECK_BITS(name_of(context) + " checkpointed", tiny.gradients, kept);
      kept = tiny.gradients;
    }
    // Along one direction over all the adapters' factors, through the float32 forward pass under the same masks.
    Random random(9);
    const std::vector<float> before = tiny.values;
    double slope = 0, up = 0, down = 0;
    for (int side = 0; side < 2; ++side) {
      Random same(10);
      for (size_t i = size_t(tiny.factors[size_t(tiny.base_factors)].offset); i < before.size(); ++i) {
        const double d = same.normal();
        if (side == 0) slope += kept[i] * d;
        tiny.values[i] = float(before[i] + (side ? -2e-4 : 2e-4) * d);
      }
      const std::vector<float> out = at(5);
      for (size_t i = 0; i < size_t(p.starts[8]); ++i) (side ? down : up) += double(out[i]) * p.gradient[i];
    }
    tiny.values = before;
    CHECK_NEAR((up - down) / 4e-4, slope, 0.05 + 0.02 * std::abs(slope));
  });
}

TEST(decoder_backward_needs_its_score) {
  Tiny tiny(kModels[0]);
  const Bank bank = tiny.bank(), other = tiny.bank();
  Machine machine(Isa::generic, 1);
  Model model(tiny.config, Weights::none(tiny.config), false);
  const TinyPack p = forest_pack(true), frozen({-1, 0}, {3, 4}, {0, 0}, 0, 1);
  const auto back = [&](const Bank& b, int64_t count) { model.backward(machine.context, b, p.gradient.data(), count, Cancel()); };
  const int64_t n = int64_t(p.gradient.size());
  CHECK_THROWS("BAD_ARGUMENT", "needs a score with keep", back(bank, n));
  score(model, machine.context, p, &bank);
  CHECK_THROWS("BAD_ARGUMENT", "needs a score with keep", back(bank, n));
  score(model, machine.context, p, &bank, {false, true, false, 0});
  CHECK_THROWS("BAD_ARGUMENT", "one element for each of", back(bank, n - 1));
  CHECK_THROWS("BAD_ARGUMENT", "bank that score had", back(other, n));
  score(model, machine.context, frozen, &bank);  // a reference in between
  back(bank, n);
  CHECK_THROWS("BAD_ARGUMENT", "needs a score with keep", back(bank, n));
  CHECK_THROWS("NOT_FOUND", "model.embed_tokens.weight", score(model, machine.context, TinyPack({-1}, {3}, {-1}, 0, 1), nullptr));
  CHECK_THROWS("BAD_ARGUMENT", "no reward head", score(model, machine.context, p, &bank, {true, false, false, 0}));
  // Nothing needs a gradient: nothing is added.
  score(model, machine.context, frozen, &bank, {false, true, false, 0});
  std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
  back(bank, int64_t(frozen.rows.size()));
  for (float g : tiny.gradients) CHECK(g == 0);
}

TEST(decoder_is_clean_after_nan) {
  Tiny tiny(kModels[2]);
  const Bank bank = tiny.bank();
  const TinyPack p = forest_pack(true), large({-1, 0}, {40, 9}, {0, 0}, 2, 12);
  on_every_machine([&](Context& context) {
    Model used(tiny.config, Weights::none(tiny.config), false), fresh(tiny.config, Weights::none(tiny.config), false);
    const std::vector<float> values = tiny.values;
    std::fill(tiny.values.begin(), tiny.values.end(), kNaN);
    score(used, context, large, &bank, {false, true, false, 0});
    used.backward(context, bank, large.gradient.data(), int64_t(large.gradient.size()), Cancel());
    tiny.values = values;
    std::vector<std::vector<float>> results;
    for (Model* model : {&used, &fresh}) {
      std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.f);
      results.push_back(score(*model, context, p, &bank, {false, true, false, 0}));
      model->backward(context, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
      results.push_back(tiny.gradients);
    }
    CHECK_BITS(name_of(context) + " scores", results[0], results[2]);
    CHECK_BITS(name_of(context) + " gradients", results[1], results[3]);
  });
}
