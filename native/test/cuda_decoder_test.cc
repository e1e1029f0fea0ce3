// The whole decoder on the emulated CUDA library against the CPU's: scores, rewards, every gradient; what fails leaves it usable.
#include "cuda_device.h"
#include "tiny_model.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

const std::vector<TinyOptions> kModels{{0, false, false, true, true, 0}, {3, true, true, false, true, 0.3f}, {5, true, false, true, false, 0}};

struct Run {
  std::vector<float> scores, squares, gradients;
};

Run run(const Device& device, Tiny& tiny, const Bank& bank, const TinyPack& p, bool bfloat16, const ScoreRequest& request) {
  Run out;
  Model model(tiny.config, Weights::none(tiny.config), bfloat16);
  std::fill(tiny.gradients.begin(), tiny.gradients.end(), 0.5f);
  out.scores.assign(p.rows.size(), kNaN);
  if (!request.reward) out.squares.assign(p.rows.size(), kNaN);
  model.score(device, p.pack(), &bank, request, out.scores.data(), request.reward ? nullptr : out.squares.data(), Cancel());
  model.backward(device, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
  out.gradients = tiny.gradients;
  return out;
}

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = double(a[i]) - 0.5, y = double(b[i]) - 0.5;  // what was there before
    ab += x * y;
    aa += x * x;
    bb += y * y;
  }
  return ab / std::sqrt(aa * bb);
}

void compare(bool reward) {
  EmulatedDevice gpu(emulator::Order::shuffled);
  const Device device(gpu.table(), gpu.context());
  Machine machine(Isa::generic, 1);
  for (TinyOptions options : kModels) {
    options.all_weights = true;  // no files: every weight is the bank's
    Tiny tiny(options);
    const Bank bank = tiny.bank();
    const TinyPack p = forest_pack(!reward);
    for (const bool bfloat16 : {false, true})
      for (const bool checkpoint : {false, true}) {
        const ScoreRequest request{reward, true, checkpoint, options.dropout > 0 ? 7u : 0u, 0.8f};
        const std::string where = std::string(bfloat16 ? "bfloat16" : "float32") + " window " + std::to_string(options.window);
        const Run on_cpu = run(machine.context, tiny, bank, p, bfloat16, request), on_gpu = run(device, tiny, bank, p, bfloat16, request);
        CHECK_CLOSE(where, on_gpu.scores, on_cpu.scores, bfloat16 ? 0.4 : 2e-5, 1e-5);
        CHECK_CLOSE(where + " squares", on_gpu.squares, on_cpu.squares, bfloat16 ? 0.05 : 1e-5, 1e-5);
        if (!bfloat16) CHECK_CLOSE(where + " gradients", on_gpu.gradients, on_cpu.gradients, 1e-4, 1e-4);
        CHECK_NEAR(cosine(on_gpu.gradients, on_cpu.gradients), 1, bfloat16 ? 3e-3 : 1e-8);
      }
  }
}

}  // namespace

TEST(cuda_decoder_logps_and_gradients_are_the_cpus) { compare(false); }
TEST(cuda_decoder_rewards_and_gradients_are_the_cpus) { compare(true); }

TEST(cuda_decoder_repeats_to_the_bit_in_any_order_of_threads) {
  Tiny tiny(kModels[0]);
  const TinyPack p = forest_pack(false);
  std::vector<Run> runs;
  on_emulated_device([&](EmulatedDevice& gpu) {
    const Bank bank = tiny.bank();
    for (const bool bfloat16 : {false, true}) runs.push_back(run(Device(gpu.table(), gpu.context()), tiny, bank, p, bfloat16, {true, true, false, 0, 1}));
  });
  for (size_t i = 2; i < runs.size(); ++i) {
    CHECK_BITS("scores", runs[i].scores, runs[i % 2].scores);
    CHECK_BITS("gradients", runs[i].gradients, runs[i % 2].gradients);
  }
}

TEST(cuda_decoder_goes_on_after_running_out_of_memory) {
  const device::Options small{0, 0, 200 << 10};
  device::Context* context = nullptr;
  char text[256] = "";
  CHECK(pluralign_device()->open(&small, &context, text, sizeof text) == device::Status::ok);
  {
    Tiny tiny(kModels[0]);
    const Bank bank = tiny.bank();
    const Device device(*pluralign_device(), context);
    Machine machine(Isa::generic, 1);
    Model model(tiny.config, Weights::none(tiny.config), false), other(tiny.config, Weights::none(tiny.config), false);
    const TinyPack large({-1, 0}, {90, 40}, {0, 0}, 0, 12), few({-1, 0}, {4, 3}, {0, 0}, 0, 5);
    const ScoreRequest request{true, false, false, 0, 1};
    std::vector<float> out(130), expected(7);
    CHECK_THROWS("OUT_OF_MEMORY", "has no room for", model.score(device, large.pack(), &bank, request, out.data(), nullptr, Cancel()));
    out.resize(7);
    model.score(device, few.pack(), &bank, request, out.data(), nullptr, Cancel());
    other.score(machine.context, few.pack(), &bank, request, expected.data(), nullptr, Cancel());
    CHECK_CLOSE("after", out, expected, 2e-5, 1e-5);
  }
  pluralign_device()->close(context);
}

TEST(cuda_decoder_says_that_a_device_is_lost) {
  EmulatedDevice gpu;
  Tiny tiny(kModels[0]);
  const Bank bank = tiny.bank();
  const Device device(gpu.table(), gpu.context());
  Model model(tiny.config, Weights::none(tiny.config), false);
  const TinyPack p({-1, 0}, {4, 3}, {0, 0}, 0, 5);
  std::vector<float> out(7);
  const auto score = [&] { model.score(device, p.pack(), &bank, {true, false, false, 0, 1}, out.data(), nullptr, Cancel()); };
  score();
  emulator::break_after(9);
  CHECK_THROWS("DEVICE_LOST", "by a new process", score());
  emulator::mend();  // the context is lost all the same
  CHECK_THROWS("DEVICE_LOST", "by a new process", score());
}

TEST(cuda_device_is_not_the_cpu) {
  EmulatedDevice gpu;
  CHECK_THROWS("UNSUPPORTED", "packing runs on the CPU only", Device(gpu.table(), gpu.context()).cpu("packing"));
}

TEST(cuda_context_that_is_closed_ends_with_the_last_thing_on_it) {
  const int64_t before = emulator::bytes_held();
  const device::Options options{0, 0, 0};
  device::Context* context = nullptr;
  char text[256] = "";
  CHECK(pluralign_device()->open(&options, &context, text, sizeof text) == device::Status::ok);
  {
    const Device device(*pluralign_device(), context);
    Tiny tiny(kModels[0]);
    const Bank bank = tiny.bank();
    Model model(tiny.config, Weights::none(tiny.config), false);
    const TinyPack p = forest_pack(true);
    std::vector<float> out(p.rows.size());
    model.score(device, p.pack(), &bank, {false, true, false, 0, 1}, out.data(), nullptr, Cancel());  // keeps a plan, and scratch memory
    CHECK(emulator::bytes_held() > before);
    device.close();
    CHECK(emulator::bytes_held() > before);
  }
  CHECK(emulator::bytes_held() == before);
}
