// Generation on the emulated CUDA library beside the CPU's: sequences that come and go, under policies of their own and mixtures.
#include "cuda_generation.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

// Tokens and log-probabilities of all, in order; three sequences at a time, and steps in several calls.
std::pair<std::vector<std::vector<int32_t>>, std::vector<float>> texts(const Device& device, Tiny& tiny, bool bfloat16) {
  Machine machine(Isa::generic, 1);
  Model model(tiny.config, Weights::none(tiny.config), bfloat16);
  const Bank bank = tiny.bank();
  Generation generation(model, machine.context, device.on_cpu() ? Device(machine.context) : device, {3, 1 << 20}, {});
  std::vector<SequenceRequest> all{request(1, 0, 6, 1), request(70, -1, 5, 2), request(5, 1, 9, 3), request(5, 1, 3, 3), request(9, 2, 4, 4), request(3, 0, 7, 5)};
  all[4].members = {{2, 0.6f}, {-1, 0.4f}};
  all[0].sampling.temperature = 0;
  all[2].sampling.repetition_penalty = 1.3f;  // these two the host draws
  all[5].sampling.top_k = 4;
  for (size_t i = 0; i < all.size(); ++i) generation.add(int64_t(i), all[i], bank.adapters());
  Texts said(all.size());
  while (generation.left() > 0) said.add(generation.run(model, &bank, 2, Cancel()));
  std::pair<std::vector<std::vector<int32_t>>, std::vector<float>> out{said.tokens, {}};
  for (const auto& some : said.logps) out.second.insert(out.second.end(), some.begin(), some.end());
  return out;
}

}  // namespace

TEST(cuda_generation_says_what_the_cpu_does) {
  EmulatedDevice gpu(emulator::Order::shuffled);
  Machine machine(Isa::generic, 1);
  for (const TinyOptions& options : {TinyOptions{0, false, false, true, true, 0}, TinyOptions{5, true, true, false, true, 0}}) {
    Tiny tiny(options);
    const auto mine = texts(Device(gpu.table(), gpu.context()), tiny, false), expected = texts(machine.context, tiny, false);
    for (size_t i = 0; i < expected.first.size(); ++i) CHECK(mine.first[i] == expected.first[i]);
    CHECK_CLOSE("log-probabilities", mine.second, expected.second, 1e-4, 1e-4);
    for (float x : texts(Device(gpu.table(), gpu.context()), tiny, true).second) CHECK(x <= 0);
  }
}

TEST(cuda_generation_takes_factors_anew_once_nothing_is_left) {
  OnGpu on_gpu(4, 1 << 20);
  std::vector<float> before;
  for (int round = 0; round < 3; ++round) {
    for (float& x : on_gpu.tiny.values) x *= 1.1f;
    on_gpu.generation.add(0, request(6, 0, 5, 7), on_gpu.bank.adapters());
    const auto mine = on_gpu.generation.run(on_gpu.model, &on_gpu.bank, 5, Cancel()), theirs = on_cpu(on_gpu, request(6, 0, 5, 7), 5);
    CHECK(mine[0].finished && mine[0].tokens == theirs[0].tokens && mine[0].logps != before);
    CHECK_CLOSE("log-probabilities", mine[0].logps, theirs[0].logps, 1e-4, 1e-4);
    before = mine[0].logps;
  }
}

TEST(cuda_generation_says_which_logit_is_damaged) {
  EmulatedDevice gpu;
  Tiny tiny(TinyOptions{});
  tiny.values[size_t(tiny.factors[size_t(tiny.weights.at("lm_head.weight"))].offset) + 3 * 10] = kNaN;
  Machine machine(Isa::generic, 1);
  Model model(tiny.config, Weights::none(tiny.config), false);
  const Bank bank = tiny.bank();
  Generation generation(model, machine.context, Device(gpu.table(), gpu.context()), {8, 1 << 20}, {});
  generation.add(0, request(6, 0, 4, 1), bank.adapters());
  CHECK_THROWS("NON_FINITE", "the logit of token 3 is", generation.run(model, &bank, 2, Cancel()));
}

TEST(cuda_generation_says_what_does_not_fit) {
  EmulatedDevice gpu;
  Tiny tiny(TinyOptions{});
  Machine machine(Isa::generic, 1);
  Model model(tiny.config, Weights::none(tiny.config), false);
  const Bank bank = tiny.bank();
  const int64_t row = DeviceCache::row_bytes(tiny.config, kF32) * tiny.config.layers;
  CHECK(row == 2 * 2 * 64 * 4 * 2);
  const Device device(gpu.table(), gpu.context());
  Generation generation(model, machine.context, device, {8, 20 * row}, {});
  CHECK_THROWS("OUT_OF_MEMORY", "ask for fewer new tokens", generation.add(0, request(10, 0, 11, 1), bank.adapters()));
  for (int i = 0; i < 4; ++i) generation.add(i, request(6, 0, 4, 1), bank.adapters());  // two at a time
  generation.run(model, &bank, 2, Cancel());
  generation.remove(1);
  int64_t ended = 0;
  while (generation.left() > 0)
    for (const SequenceOutput& o : generation.run(model, &bank, 3, Cancel())) ended += o.finished;
  CHECK(ended == 3);
}

TEST(device_cache_keeps_rows_where_it_grows_and_takes_up_gaps) {
  EmulatedDevice gpu;
  Tiny tiny(TinyOptions{});
  const Device device(gpu.table(), gpu.context());
  DeviceCache cache(tiny.config, device, kF32);
  const int64_t bytes = DeviceCache::row_bytes(tiny.config, kF32);
  const auto at = [&](int64_t layer, int slot) { return static_cast<char*>(cache.layer(layer)) + cache.row(slot) * bytes; };
  const auto put = [&](int slot, float value) {
    const std::vector<float> row(size_t(bytes / 4), value);
    for (int64_t l = 0; l < tiny.config.layers; ++l) device.upload(at(l, slot), row.data(), size_t(bytes));
  };
  const auto get = [&](int64_t layer, int slot) {
    std::vector<float> row(size_t(bytes / 4));
    device.fetch(row.data(), at(layer, slot), size_t(bytes));
    return row.front() == row.back() ? row[0] : kNaN;
  };
  const int a = cache.open(3), b = cache.open(2);
  put(a, 1);
  put(b, 2);
  const int c = cache.open(40);  // the buffer grows
  put(c, 3);
  for (int64_t l = 0; l < tiny.config.layers; ++l) CHECK(get(l, a) == 1 && get(l, b) == 2 && get(l, c) == 3);
  CHECK(cache.bytes_held() == cache.bytes(45));
  cache.close(a);
  const int d = cache.open(3);
  CHECK(cache.row(d) == 0);
  cache.copy(c, d, 1);
  CHECK(get(0, d) == 3 && get(1, d) == 3 && get(1, b) == 2);
}

TEST(device_cache_grows_to_its_limit_and_no_further) {
  EmulatedDevice gpu;
  Tiny tiny(TinyOptions{});
  DeviceCache cache(tiny.config, Device(gpu.table(), gpu.context()), kF32);
  cache.limit(cache.bytes(50) + 1);
  const int64_t before = emulator::bytes_held();
  const auto held = [&] { return emulator::bytes_held() - before; };
  const int first = cache.open(20);
  cache.open(20);
  CHECK(cache.has_room(10, 1) && cache.has_room(5, 2) && !cache.has_room(11, 1) && !cache.has_room(4, 3));
  cache.open(1);  // twice as many rows would be 80
  CHECK(held() >= cache.bytes(41) && held() <= cache.bytes(50) * 17 / 16 + 64);  // buffers keep a sixteenth to grow
  CHECK(!cache.has_room(10, 1));
  cache.close(first);
  CHECK(cache.has_room(20, 1) && !cache.has_room(21, 1));
}
