// Steps of generation that are replayed beside the same steps launched one by one: to the bit, whatever changes between steps.
#include "cuda_generation.h"
#include "cuda_graphs.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

struct Said : Texts {
  using Texts::Texts;
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
  Said out(batch.requests.size());
  size_t next = 0;
  const auto add = [&] {
    generation.add(int64_t(next), batch.requests[next], bank.adapters());
    ++next;
  };
  while (next < std::min(batch.first, batch.requests.size())) add();
  const int64_t launches = emulator::launches();
  for (int64_t run = 1; generation.left() > 0 || next < batch.requests.size(); ++run) {
    if (run % 3 == 0 && next < batch.requests.size()) add();
    out.add(generation.run(model, &bank, 2, Cancel()));
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
  OnGpu on_gpu(4, 1 << 20);
  int64_t replayed = 0;
  for (int round = 0; round < 3; ++round) {
    for (float& x : on_gpu.tiny.values) x *= 1.1f;
    on_gpu.generation.add(0, request(6, 0, 9, 7), on_gpu.bank.adapters());
    const auto mine = on_gpu.generation.run(on_gpu.model, &on_gpu.bank, 9, Cancel()), theirs = on_cpu(on_gpu, request(6, 0, 9, 7), 9);
    CHECK(mine[0].tokens == theirs[0].tokens);
    CHECK_CLOSE("log-probabilities", mine[0].logps, theirs[0].logps, 1e-4, 1e-4);
    CHECK(on_gpu.generation.replayed() > replayed);
    replayed = on_gpu.generation.replayed();
  }
}

TEST(cuda_replayed_steps_say_which_logit_is_damaged) {
  const Graphs on(true);
  OnGpu on_gpu(8, 1 << 20);
  on_gpu.generation.add(0, request(6, 0, 20, 1), on_gpu.bank.adapters());
  on_gpu.generation.run(on_gpu.model, &on_gpu.bank, 6, Cancel());
  CHECK(on_gpu.generation.replayed() > 0);
  const float nan = kNaN;
  on_gpu.device.upload(on_gpu.bank.on(on_gpu.device).values(on_gpu.tiny.weights.at("lm_head.weight")) + 3 * 10, &nan, 4);
  CHECK_THROWS("NON_FINITE", "the logit of token 3 is", on_gpu.generation.run(on_gpu.model, &on_gpu.bank, 2, Cancel()));
}
