// Banks of factors: sharing, and every refusal.
#include "model/bank.h"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

ModelConfig config() {
  ModelConfig c;
  c.vocabulary = 10;
  c.hidden = 6;
  c.intermediate = 8;
  c.layers = 2;
  c.heads = 2;
  c.kv_heads = 1;
  c.head_dim = 4;
  return c;
}

struct Layout {
  int64_t size = 100;
  std::vector<Factor> factors{{0, 2, 6}, {12, 8, 2}, {28, 2, 2}, {32, 1, 2}, {34, 1, 6}, {40, 4, 2}, {48, 3, 6}};
  std::vector<std::vector<ModuleSpec>> adapters{{{0, kQ, 0, 1, -1, 2.f, 0.f}, {1, kK, 0, 5, 3, 1.f, 0.f}}, {{1, kQ, 0, 1, 2, 1.f, 0.25f}}};
  std::vector<int> reward_heads{4, -1};
  std::map<std::string, int> weights;
  std::vector<float> values = std::vector<float>(200, 0.f), gradients = values;

  Bank make() { return Bank(values.data(), gradients.data(), size, factors, adapters, reward_heads, weights); }
  void check() { make().check(config()); }
};

void refused(const char* code, const char* why, void (*damage)(Layout&)) {
  Layout layout;
  damage(layout);
  CHECK_THROWS(code, why, layout.check());
}

}  // namespace

TEST(bank_finds_modules_and_shares_factors) {
  Layout l;
  const Bank bank = l.make();
  bank.check(config());
  CHECK(bank.adapters() == 2 && bank.largest_rank() == 2 && bank.lowest_layer() == 0 && bank.size() == 100);
  const LoraModule *plain = bank.module(0, 0, kQ), *vector = bank.module(0, 1, kK), *core = bank.module(1, 1, kQ);
  if (!CHECK(plain && vector && core)) return;
  CHECK(!bank.module(0, 0, kK) && !bank.module(1, 0, kQ) && !bank.module(-1, 0, kQ));
  CHECK(plain->a == l.values.data() && core->a == plain->a && vector->a == plain->a && core->da == l.gradients.data());
  CHECK(plain->b == l.values.data() + 12 && core->b == plain->b && vector->b == l.values.data() + 40);
  CHECK(!plain->core && !plain->dcore && plain->core_rows == 0);
  CHECK(vector->core == l.values.data() + 32 && vector->dcore == l.gradients.data() + 32 && vector->core_rows == 1);
  CHECK(core->core == l.values.data() + 28 && core->core_rows == 2 && core->r == 2);
  CHECK(plain->scale == 2.f && plain->dropout == 0.f && core->dropout == 0.25f);
  CHECK(bank.reward_head(0) == 4 && bank.reward_head(1) == -1);
  CHECK(bank.values(4) == l.values.data() + 34 && bank.gradient(4) == l.gradients.data() + 34);
}

TEST(bank_may_be_empty) {
  Layout l;
  l.adapters.clear();
  l.reward_heads.clear();
  l.factors.clear();
  l.size = 0;
  const Bank bank = l.make();
  bank.check(config());
  CHECK(bank.adapters() == 0 && bank.largest_rank() == 0 && bank.lowest_layer() > 1000);
  CHECK(bank.id() != l.make().id());
}

TEST(bank_refuses_what_does_not_fit_itself) {
  refused("BAD_SHAPE", "does not fit a buffer", [](Layout& l) { l.factors[6].offset = 83; });
  refused("BAD_SHAPE", "does not fit a buffer", [](Layout& l) { l.factors[0].offset = -1; });
  refused("BAD_SHAPE", "does not fit a buffer", [](Layout& l) { l.factors[0].rows = 0; });
  refused("BAD_SHAPE", "does not fit a buffer", [](Layout& l) { l.factors[0].cols = -6; });
  refused("BAD_SHAPE", "does not fit a buffer", [](Layout& l) { l.factors[0] = {0, INT64_MAX / 2, 4}; });
  refused("BAD_SHAPE", "does not fit a buffer", [](Layout& l) { l.size = 65; });
  refused("BAD_ARGUMENT", "factor 7 of 7", [](Layout& l) { l.adapters[0][0].a = 7; });
  refused("BAD_ARGUMENT", "factor -1 of 7", [](Layout& l) { l.adapters[0][0].a = -1; });
  refused("BAD_ARGUMENT", "factor -1 of 7", [](Layout& l) { l.adapters[0][0].b = -1; });
  refused("BAD_ARGUMENT", "factor -2 of 7", [](Layout& l) { l.adapters[0][0].core = -2; });
  refused("BAD_ARGUMENT", "factor 9 of 7", [](Layout& l) { l.reward_heads[1] = 9; });
  refused("BAD_ARGUMENT", "factor -1 of 7", [](Layout& l) { l.weights["model.norm.weight"] = -1; });
  refused("BAD_ARGUMENT", "rewardHeads", [](Layout& l) { l.reward_heads.pop_back(); });
  refused("BAD_ARGUMENT", "no target 7", [](Layout& l) { l.adapters[0][0].target = 7; });
  refused("BAD_ARGUMENT", "no target -1", [](Layout& l) { l.adapters[0][0].target = -1; });
  refused("BAD_ARGUMENT", "layer -1", [](Layout& l) { l.adapters[0][0].layer = -1; });
  refused("BAD_ARGUMENT", "dropout", [](Layout& l) { l.adapters[0][0].dropout = 1.f; });
  refused("BAD_ARGUMENT", "dropout", [](Layout& l) { l.adapters[0][0].dropout = -0.1f; });
  refused("BAD_ARGUMENT", "dropout", [](Layout& l) { l.adapters[0][0].dropout = kNaN; });
  refused("BAD_SHAPE", "A has rank 3, B has rank 2", [](Layout& l) { l.adapters[0][0].a = 6; });
  refused("BAD_SHAPE", "core must be", [](Layout& l) { l.adapters[1][0].core = 4; });
  refused("BAD_SHAPE", "core must be", [](Layout& l) { l.adapters[1][0].core = 5; });
}

TEST(bank_refuses_what_does_not_fit_the_model) {
  refused("BAD_SHAPE", "layer 2 of a model with 2", [](Layout& l) { l.adapters[0][0].layer = 2; });
  refused("BAD_SHAPE", "model.layers.0.self_attn.k_proj", [](Layout& l) { l.adapters[0][0].target = kK; });
  refused("BAD_SHAPE", "model.layers.0.mlp.down_proj", [](Layout& l) { l.adapters[0][0].target = kDown; });
  refused("BAD_SHAPE", "reward head has 4", [](Layout& l) { l.reward_heads[0] = 2; });
  // Another factor at the same place does not lend its shape.
  refused("BAD_SHAPE", "model.layers.0.self_attn.q_proj", [](Layout& l) {
    l.factors[0] = {0, 2, 3};
    l.factors.push_back({0, 1, 6});
  });
}
