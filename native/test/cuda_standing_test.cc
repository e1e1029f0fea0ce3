// Steps of generation that are replayed beside the same steps launched one by one: to the bit, whatever changes between steps.
#include "cuda_graphs.h"
#include "model/generate.h"
#include "tiny_model.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

SequenceRequest request(int64_t length, int adapter, int64_t fresh, uint32_t seed) {
  SequenceRequest q;
  for (int64_t t = 0; t < length; ++t) q.prompt.push_back(int32_t((int64_t(seed) * 5 + t * 3) % 17));
  q.members = {{adapter, 1.f}};
  q.max_new_tokens = fresh;
  q.seed = seed;
  q.sampling.temperature = 0.7f;
  return q;
}

struct Said {
  std::vector<std::vector<int32_t>> tokens;
  std::vector<std::vector<float>> logps;
  int64_t steps = 0, replayed = 0, launches = 0;
  bool operator==(const Said& o) const { return tokens == o.tokens && logps == o.logps; }
};

struct Batch {
  std::vector<SequenceRequest> requests;
  int64_t rows = 8;       // at a time
  size_t first = 1000;    // requests that are there from the beginning; another comes every third run
  int64_t memory = 1 << 22;
};

Said say(bool graphs, Tiny& tiny, bool bfloat16, const Batch& batch) {
  const Graphs how(graphs);
  EmulatedDevice gpu;
  Machine machine(Isa::generic, 1);
  Model model(tiny.config, Weights::none(tiny.config), bfloat16);
  const Bank bank = tiny.bank();
  Generation generation(model, machine.context, Device(gpu.table(), gpu.context()), {batch.rows, batch.memory}, {});
  Said out;
  out.tokens.resize(batch.requests.size());
  out.logps.resize(batch.requests.size());
  size_t next = 0;
  const auto add = [&] {
    generation.add(int64_t(next), batch.requests[next], bank.adapters());
    ++next;
  };
  while (next < std::min(batch.first, batch.requests.size())) add();
  const int64_t launches = emulator::launches();
  for (int64_t run = 1; generation.left() > 0 || next < batch.requests.size(); ++run) {
    if (run % 3 == 0 && next < batch.requests.size()) add();
    for (const SequenceOutput& o : generation.run(model, &bank, 2, Cancel())) {
      out.tokens[size_t(o.id)].insert(out.tokens[size_t(o.id)].end(), o.tokens.begin(), o.tokens.end());
      out.logps[size_t(o.id)].insert(out.logps[size_t(o.id)].end(), o.logps.begin(), o.logps.end());
    }
    out.steps += 2;
  }
  out.replayed = generation.replayed();
  out.launches = emulator::launches() - launches;
  return out;
}

// Sequences of all kinds, which end at different times.
Batch mixed() {
  Batch b;
  for (uint32_t i = 0; i < 7; ++i) b.requests.push_back(request(3 + i, int(i % 4) - 1, 12 + 4 * int64_t(i), i));
  b.requests[1].sampling.temperature = 0;
  b.requests[2].members = {{2, 0.6f}, {-1, 0.4f}};
  b.requests[3].sampling.repetition_penalty = 1.3f;
  b.requests[4].sampling.top_k = 4;
  return b;
}

}  // namespace

TEST(cuda_standing_steps_are_filled_up) {
  for (const auto& [rows, filled] : {std::pair<int64_t, int64_t>{1, 1}, {2, 2}, {3, 4}, {5, 8}, {8, 8}, {9, 16}, {17, 24}, {64, 64}, {249, 256}})
    CHECK(StandingSteps::filled_up(rows) == filled);
}

TEST(cuda_replayed_steps_say_what_launched_ones_do) {
  for (const TinyOptions& options : {TinyOptions{0, false, false, true, true, 0}, TinyOptions{5, true, true, false, true, 0}})
    for (const bool bfloat16 : {false, true}) {
      Tiny tiny(options);
      const Said replayed = say(true, tiny, bfloat16, mixed()), launched = say(false, tiny, bfloat16, mixed());
      CHECK(replayed == launched);
      CHECK(launched.replayed == 0 && replayed.replayed > replayed.steps / 3 && replayed.launches < launched.launches * 3 / 4);
      for (const auto& logps : replayed.logps)
        for (float x : logps) CHECK(x <= 0);
    }
}

// Newcomers bring longer prompts than any before: activations, scratch, the cache and the table of rotations grow between steps.
TEST(cuda_replayed_steps_end_with_memory_that_grew) {
  Tiny tiny(TinyOptions{});
  Batch b = mixed();
  b.first = 3;
  for (size_t i = 3; i < b.requests.size(); ++i) {
    const SequenceRequest longer = request(20 * int64_t(i), int(i % 4) - 1, 30, uint32_t(i));
    b.requests[i].prompt = longer.prompt;
    b.requests[i].max_new_tokens = longer.max_new_tokens;
  }
  const Said replayed = say(true, tiny, false, b), launched = say(false, tiny, false, b);
  CHECK(replayed == launched && replayed.replayed > 0);
}

// The same number of rows, but other adapters, positions and places in the cache each time: one recording serves all.
TEST(cuda_replayed_steps_see_who_is_there_now) {
  Tiny tiny(TinyOptions{});
  Batch b;
  b.rows = 4;
  for (uint32_t i = 0; i < 12; ++i) b.requests.push_back(request(5, int((i * 2) % 4) - 1, 9, i));  // by fours
  const Said replayed = say(true, tiny, false, b), launched = say(false, tiny, false, b);
  CHECK(replayed == launched);
  CHECK_NEAR(replayed.replayed, 3 * 8 - 2, 0);
}

// A sequence says the same beside others as alone, though rows were filled up for one of both.
TEST(cuda_standing_steps_leave_rows_to_themselves) {
  Tiny tiny(TinyOptions{});
  const Batch all = mixed();
  const Said together = say(true, tiny, false, all);
  for (size_t i = 0; i < all.requests.size(); ++i) {
    Batch one;
    one.requests = {all.requests[i]};
    const Said alone = say(true, tiny, false, one);
    CHECK(alone.tokens[0] == together.tokens[i] && alone.logps[0] == together.logps[i]);
  }
}

TEST(cuda_replayed_steps_take_factors_that_changed_between_generations) {
  const Graphs on(true);
  EmulatedDevice gpu;
  Tiny tiny(TinyOptions{});
  Machine machine(Isa::generic, 1);
  Model model(tiny.config, Weights::none(tiny.config), false);
  const Bank bank = tiny.bank();
  Generation generation(model, machine.context, Device(gpu.table(), gpu.context()), {4, 1 << 20}, {});
  int64_t replayed = 0;
  for (int round = 0; round < 3; ++round) {
    for (float& x : tiny.values) x *= 1.1f;
    Model other(tiny.config, Weights::none(tiny.config), false);
    const Bank same = tiny.bank();
    Generation on_cpu(other, machine.context, machine.context, {4, 1 << 20}, {});
    generation.add(0, request(6, 0, 9, 7), bank.adapters());
    on_cpu.add(0, request(6, 0, 9, 7), same.adapters());
    const auto mine = generation.run(model, &bank, 9, Cancel()), theirs = on_cpu.run(other, &same, 9, Cancel());
    CHECK(mine[0].tokens == theirs[0].tokens);
    CHECK_CLOSE("log-probabilities", mine[0].logps, theirs[0].logps, 1e-4, 1e-4);
    CHECK(generation.replayed() > replayed);
    replayed = generation.replayed();
  }
}

TEST(cuda_replayed_steps_say_which_logit_is_damaged) {
  const Graphs on(true);
  EmulatedDevice gpu;
  Tiny tiny(TinyOptions{});
  Machine machine(Isa::generic, 1);
  Model model(tiny.config, Weights::none(tiny.config), false);
  const Bank bank = tiny.bank();
  Generation generation(model, machine.context, Device(gpu.table(), gpu.context()), {8, 1 << 20}, {});
  generation.add(0, request(6, 0, 20, 1), bank.adapters());
  generation.run(model, &bank, 6, Cancel());
  CHECK(generation.replayed() > 0);
  const Device device(gpu.table(), gpu.context());
  const float nan = kNaN;
  device.upload(bank.on(device).values(tiny.weights.at("lm_head.weight")) + 3 * 10, &nan, 4);
  CHECK_THROWS("NON_FINITE", "the logit of token 3 is", generation.run(model, &bank, 2, Cancel()));
}
