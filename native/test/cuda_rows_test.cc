// The CUDA library's operators on rows, emulated, against the reference's: embeddings, readouts, positions, gated activations,
// rewards, AdamW.
#include "cuda_both.h"
#include "ops/rope/rope.h"

using namespace pluralign;
using namespace pluralign::test;
using device::Table;

namespace {

constexpr double kHalf = 0.0079;  // one unit of bfloat16

struct Shape {
  std::vector<int> parents;
  std::vector<int64_t> lengths;
};
// Nothing, one row, a forest.
const std::vector<Shape> kShapes{{{}, {}}, {{-1}, {1}}, {{-1, 0, 0, -1, 3}, {5, 3, 1, 70, 2}}};

std::vector<int> none(size_t n) { return std::vector<int>(n, 0); }

}  // namespace

TEST(cuda_embed_and_gather_match_the_reference) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (const Shape& s : kShapes)
      for (const int64_t width : {1, 33, 160})
        for (const int storage : {kF32, kBf16}) {
          Random random(unsigned(width) + 1);
          TestPlan plan(gpu, s.parents, s.lengths, none(s.parents.size()));
          Both both(gpu);
          const int64_t rows = plan.arrays.rows, n = plan.arrays.readouts;
          const int table = both.add(Typed(storage, random.normals(17 * width))), x = both.room(rows * width), dx = both.add(random.normals(rows * width));
          const int dtable = both.add(random.normals(17 * width)), read = both.room(n * width), d = both.add(random.normals(n * width));
          const DType type = storage == kF32 ? DType::f32 : DType::bf16;
          both.run<device::EmbedCall>(&Table::embed, [&](const Both::Side& side) { return device::EmbedCall{side.plan(plan), {side.at<void>(table), type, 0, 17, width, width}, side.at(x)}; });
          both.run<device::EmbedBackwardCall>(&Table::embed_backward, [&](const Both::Side& side) { return device::EmbedBackwardCall{side.plan(plan), side.at(dx), side.at(dtable), width, 17}; });
          both.run<device::GatherCall>(&Table::gather, [&](const Both::Side& side) { return device::GatherCall{side.plan(plan), width, side.at(x), side.at(read)}; });
          both.run<device::GatherCall>(&Table::gather_backward, [&](const Both::Side& side) { return device::GatherCall{side.plan(plan), width, side.at(dx), side.at(d)}; });
          both.same("embed", x, 0, 0);
          both.same("embed backward", dtable, 1e-6, 1e-6);
          both.same("gather", read, 0, 0);
          both.same("gather backward", dx, 1e-6, 1e-6);
        }
  });
}

TEST(cuda_gather_adds_up_rows_that_are_read_twice) {
  on_emulated_device([](EmulatedDevice& gpu) {
    TestPlan whole(gpu, {-1}, {4}, {0});
    device::PlanArrays arrays = whole.arrays;
    const std::vector<int32_t> rows{0, 2, 2, 2, 3};
    arrays.read_rows = rows.data();
    arrays.readouts = 5;
    device::Plan* plan = nullptr;
    gpu.check(gpu.table().make_plan(gpu.context(), &arrays, &plan));
    const auto x = gpu.take(std::vector<float>{1, 2, 3, 4}), d = gpu.take(std::vector<float>{10, 20, 30, 40, 50});
    gpu.run(&Table::gather_backward, device::GatherCall{plan, 1, x.floats(), d.floats()});
    CHECK_CLOSE(gpu.name(), x.values(), std::vector<float>{11, 2, 93, 54}, 0, 0);
    gpu.table().drop_plan(gpu.context(), plan);
  });
}

TEST(cuda_rope_matches_the_reference) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (const Shape& s : kShapes)
      for (const auto& [heads, kv_heads, head_dim] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 2}, {4, 2, 6}, {3, 1, 80}})
        for (const int storage : {kF32, kBf16})
          for (const bool normed : {false, true}) {
            Random random(unsigned(head_dim) + 3);
            TestPlan plan(gpu, s.parents, s.lengths, none(s.parents.size()));
            Both both(gpu);
            RopeTable table;
            const std::vector<double> frequencies(size_t(head_dim / 2), 0.3);
            table.reserve(90, frequencies.data(), head_dim / 2, 1.1);
            const int64_t rows = plan.arrays.rows, width = (heads + 2 * kv_heads) * head_dim;
            const int raw = both.add(Typed(storage, random.normals(rows * width))), out = both.room(rows * width), d = both.add(random.normals(rows * width));
            const int values = both.add(table.values()), q = both.add(random.normals(head_dim)), k = both.add(random.normals(head_dim));
            const int dq = both.add(random.normals(head_dim)), dk = both.add(random.normals(head_dim));
            const auto call = [&](const Both::Side& side, int to) {
              return device::RopeCall{side.plan(plan), heads, kv_heads, head_dim, normed ? side.at(q) : nullptr, normed ? side.at(k) : nullptr, 1e-5f, storage, side.at(values),
                                      side.at<void>(raw), side.at(to), normed ? side.at(dq) : nullptr, normed ? side.at(dk) : nullptr};
            };
            both.run<device::RopeCall>(&Table::rope, [&](const Both::Side& side) { return call(side, out); });
            both.run<device::RopeCall>(&Table::rope_backward, [&](const Both::Side& side) { return call(side, d); });
            both.same("rope", out, 1e-6, 1e-5);
            both.same("rope backward", d, 1e-5, 1e-5);
            both.same("dq", dq, 1e-4, 1e-5);
            both.same("dk", dk, 1e-4, 1e-5);
          }
  });
}

TEST(cuda_swiglu_matches_the_reference) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (const int64_t rows : {0, 1, 7})
      for (const int64_t width : {1, 37, 300})
        for (const int storage : {kF32, kBf16}) {
          Random random(unsigned(rows * 100 + width));
          Both both(gpu);
          const int gate_up = both.add(Typed(storage, random.normals(rows * 2 * width, 3))), act = both.room(rows * width, storage);
          const int dact = both.add(random.normals(rows * width)), d = both.room(rows * 2 * width);
          const auto call = [&](const Both::Side& side) { return device::SwigluCall{rows, width, side.at<void>(gate_up), side.at<void>(act), side.at(dact), side.at(d), storage, 0}; };
          both.run<device::SwigluCall>(&Table::swiglu, call);
          both.run<device::SwigluCall>(&Table::swiglu_backward, call);
          both.same("swiglu", act, 1e-6, storage == kF32 ? 1e-5 : kHalf);
          both.same("swiglu backward", d, 1e-5, 1e-5);
        }
  });
}

TEST(cuda_rewards_match_the_reference) {
  on_emulated_device([](EmulatedDevice& gpu) {
    for (const Shape& s : kShapes)
      for (const int64_t width : {1, 33, 130})
        for (const int storage : {kF32, kBf16}) {
          Random random(unsigned(width) + 5);
          TestPlan plan(gpu, s.parents, s.lengths, none(s.parents.size()));
          Both both(gpu);
          const int64_t n = plan.arrays.readouts;
          std::vector<int32_t> adapters;
          for (int64_t i = 0; i < n; ++i) adapters.push_back(int32_t(i % 2 * 2));
          // Adapters 0 and 2 share a head; 1 has none.
          const int heads = both.add(random.normals(width)), dheads = both.add(random.normals(width)), hidden = both.add(Typed(storage, random.normals(n * width)));
          const int who = both.add_raw(adapters), out = both.room(n), dout = both.add(random.normals(n)), dhidden = both.room(n * width);
          const auto call = [&](const Both::Side& side) {
            return device::RewardCall{side.plan(plan), {side.at<void>(hidden), storage == kF32 ? DType::f32 : DType::bf16, 0, n, width, width},
                                      side.pointers<const float>(heads, {0, -1, 0}), side.pointers<float>(dheads, {0, -1, 0}), side.at<int32_t>(who), side.at(out), side.at(dout),
                                      side.at(dhidden), 3};
          };
          both.run<device::RewardCall>(&Table::reward, call);
          both.run<device::RewardCall>(&Table::reward_backward, call);
          both.same("reward", out, 1e-5, 1e-5);
          both.same("dhidden", dhidden, 1e-6, 1e-6);
          both.same("dhead", dheads, 1e-4, 1e-5);
        }
  });
}

TEST(cuda_adamw_matches_the_reference) {
  on_emulated_device([](EmulatedDevice& gpu) {
    Random random(9);
    Both both(gpu);
    std::vector<float> v = random.normals(700);
    for (float& x : v) x = std::abs(x);
    const int p = both.add(random.normals(700)), g = both.add(random.normals(700)), m = both.add(random.normals(700)), square = both.add(v);
    const std::vector<int64_t> spans{0, 0, 3, 4, 10, 600};
    const std::vector<int32_t> steps{1, 1, 7};
    const std::vector<uint8_t> decay{1, 1, 0};
    both.run<device::AdamWCall>(&Table::adamw, [&](const Both::Side& side) {
      return device::AdamWCall{side.at(p), side.at(g), side.at(m), side.at(square), 3, spans.data(), steps.data(), decay.data(), 1e-2, 0.9, 0.999, 1e-8, 0.1, 0.5};
    });
    both.same("p", p, 1e-7, 1e-5);
    both.same("m", m, 1e-7, 1e-6);
    both.same("v", square, 1e-7, 1e-6);
  });
}
