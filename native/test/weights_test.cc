// Weights from files the test writes: every type in both compute types, refusals, and banks in their place.
#include "tensors_file.h"
#include "tiny_model.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

Network resolved(const Weights& weights, const Bank* bank) {
  Machine machine(Isa::generic, 1);
  const Device device(machine.context);
  return weights.resolve(device, bank ? &bank->on(device) : nullptr);
}

std::string refusal(const Tiny& tiny, const std::vector<TensorsFile::Tensor>& tensors, bool bfloat16 = false) {
  const TensorsFile file(tensors);
  try {
    Weights::load(tiny.config, {file.path()}, bfloat16, Cancel());
  } catch (const Error& e) {
    CHECK(std::string(e.what()).find(file.path()) == 0);
    return std::string(e.code()) + " " + e.what();
  }
  return "accepted";
}

bool says(const std::string& text, const std::string& code, const std::string& part) {
  if (text.find(code) == 0 && text.find(part) != std::string::npos) return true;
  std::printf("  %s\n", text.c_str());
  return false;
}

std::vector<double> values_of(const Weight& w) {
  std::vector<double> v;
  for (int64_t i = 0; i < w.rows * w.cols; ++i)
    v.push_back(w.type == DType::f32    ? static_cast<const float*>(w.data)[i]
                : w.type == DType::bf16 ? to_float(static_cast<const bf16*>(w.data)[i])
                                        : to_float(static_cast<const f16*>(w.data)[i]));
  return v;
}

}  // namespace

TEST(weights_load_every_type_in_both_compute_types) {
  const Tiny tiny(TinyOptions{});
  for (DType type : {DType::f32, DType::bf16, DType::f16, DType::f64})
    for (bool bfloat16 : {false, true})
      for (size_t padding : {0, 1, 3, 4}) {  // data that is and is not aligned for its type
        const auto tensors = tensors_of(tiny, type);
        const TensorsFile file(tensors, padding);
        const auto weights = Weights::load(tiny.config, {file.path()}, bfloat16, Cancel());
        CHECK(weights->shapes().size() == tensors.size());
        const Network n = resolved(*weights, nullptr);
        CHECK(!n.trains_base && n.layers.size() == 2);
        const auto check = [&](const Weight& w, const char* name, DType expected_type) {
          const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
          std::vector<double> expected;
          for (double x : at->values) expected.push_back(bfloat16 ? double(to_float(to_bf16(float(x)))) : double(float(x)));
          CHECK(w.grad == nullptr && w.type == expected_type);
          CHECK_CLOSE(name, values_of(w), expected, 0, 0);
        };
        // Matrices stay as they are where the compute type allows and they are aligned; vectors are float32.
        const DType matrix = bfloat16 ? DType::bf16 : type;
        const DType kept = matrix != DType::f64 && (matrix == DType::bf16 || n.embedding.type == matrix) ? n.embedding.type : DType::f32;
        if (bfloat16 || padding == 0) CHECK(n.embedding.type == (matrix == DType::f64 ? DType::f32 : matrix));
        check(n.embedding, "model.embed_tokens.weight", kept);
        check(n.head, "lm_head.weight", kept);
        check(n.final_norm, "model.norm.weight", DType::f32);
        check(n.layers[1].linear[kDown].weight, "model.layers.1.mlp.down_proj.weight", kept);
        check(n.layers[0].linear[kQ].bias, "model.layers.0.self_attn.q_proj.bias", DType::f32);
      }
}

TEST(weights_from_a_file_score_as_a_bank_of_the_same) {
  Tiny tiny(TinyOptions{5, true, false, true, true, 0}), frozen(TinyOptions{5, true, false, true, false, 0});
  const Bank all = tiny.bank(), adapters = frozen.bank();
  const TensorsFile file(tensors_of(tiny, DType::f32));
  const TinyPack p = forest_pack(true);
  on_every_machine([&](Context& context) {
    for (bool bfloat16 : {false, true}) {
      // In bfloat16 a bank's weights stay float32, those of a file do not.
      Model trained(tiny.config, Weights::none(tiny.config), bfloat16), loaded(tiny.config, Weights::load(tiny.config, {file.path()}, bfloat16, Cancel()), bfloat16);
      CHECK_CLOSE(name_of(context), score(loaded, context, p, &adapters, {false, true, false, 0}), score(trained, context, p, &all, {false, true, false, 0}), bfloat16 ? 0.1 : 0, 0);
      for (Tiny* t : {&tiny, &frozen}) std::fill(t->gradients.begin(), t->gradients.end(), 0.f);
      trained.backward(context, all, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
      loaded.backward(context, adapters, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
      for (float g : frozen.gradient_of(0, frozen.base_factors)) CHECK(g == 0);
      if (!bfloat16) CHECK_BITS(name_of(context), frozen.gradient_of(frozen.base_factors, int(frozen.factors.size())), tiny.gradient_of(tiny.base_factors, int(tiny.factors.size())));
    }
  });
}

TEST(weights_backward_stops_at_the_lowest_adapted_layer) {
  Tiny tiny(TinyOptions{0, false, false, true, false, 0}), above(TinyOptions{0, false, false, true, false, 0});
  above.adapters = {above.adapters[1]};  // of the upper layer only
  above.reward_heads = {-1};
  const Bank whole = tiny.bank(), upper = above.bank();
  const TensorsFile file(tensors_of(tiny, DType::f32));
  Machine machine(Isa::generic, 1);
  Model model(tiny.config, Weights::load(tiny.config, {file.path()}, false, Cancel()), false);
  TinyPack p({-1, 0}, {5, 4}, {1, 1}, 2, 5);
  const auto run = [&](const Bank& bank) {
    score(model, machine.context, p, &bank, {false, true, false, 0});
    model.backward(machine.context, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
  };
  run(whole);
  p.adapters = {0, 0};
  run(upper);
  CHECK_BITS("gradients", above.gradients, tiny.gradients);
}

TEST(weights_generate_what_score_finds_likeliest) {
  Tiny tiny(TinyOptions{4, false, true, true, false, 0});
  const Bank bank = tiny.bank();
  const TensorsFile file(tensors_of(tiny, DType::f32));
  on_every_machine([&](Context& context) {
    Model model(tiny.config, Weights::load(tiny.config, {file.path()}, false, Cancel()), false);
    const std::vector<std::vector<int32_t>> prompts{{1, 2, 3}, {4}, {5, 6, 7, 8, 9}};
    for (int adapter : {-1, 0, 2}) {
      GenerateRequest request{adapter, 6, 0, 1, 0, {1, 2, 3}, {}};
      const auto texts = model.generate(context, context, prompts, &bank, request, Cancel());
      for (size_t i = 0; i < prompts.size(); ++i) {
        // Every token against all others, read out at one row.
        TinyPack p({-1}, {0}, {adapter}, 0, 0);
        p.tokens = prompts[i];
        p.tokens.insert(p.tokens.end(), texts[i].begin(), texts[i].end());
        p.starts = {0, int32_t(p.tokens.size())};
        for (size_t t = 0; t < texts[i].size(); ++t)
          for (int32_t v = 0; v < 17; ++v) {
            p.rows.push_back(int32_t(prompts[i].size() + t) - 1);
            p.targets.push_back(v);
          }
        const std::vector<float> logps = score(model, context, p, &bank);
        for (size_t t = 0; t < texts[i].size(); ++t)
          for (size_t v = 0; v < 17; ++v) CHECK(logps[t * 17 + size_t(texts[i][t])] >= logps[t * 17 + v]);
        // Alone, and with a stop token.
        GenerateRequest one = request;
        one.seeds = {9};
        CHECK(model.generate(context, context, {prompts[i]}, &bank, one, Cancel())[0] == texts[i]);
        one.stop_tokens = {texts[i][2]};
        const auto stopped = model.generate(context, context, {prompts[i]}, &bank, one, Cancel())[0];
        CHECK(stopped.size() <= 3 && std::equal(stopped.begin(), stopped.end(), texts[i].begin()) && stopped.back() == texts[i][2]);
      }
    }
  });
}

TEST(weights_refuse_what_does_not_fit) {
  const Tiny tiny(TinyOptions{});
  const auto damaged = [&](DType type, const char* name, auto damage, bool bfloat16 = false) {
    auto tensors = tensors_of(tiny, type);
    for (size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i].name == name) {
        damage(tensors, i);
        break;
      }
    return refusal(tiny, tensors, bfloat16);
  };
  const auto remove = [](auto& t, size_t i) { t.erase(t.begin() + int64_t(i)); };
  for (const char* name : {"model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.layers.0.input_layernorm.weight"}) {
    CHECK(says(damaged(DType::f32, name, remove), "BAD_FILE", std::string("no tensor ") + name));
    for (DType type : {DType::f32, DType::bf16, DType::f16, DType::f64})
      for (float bad : {kNaN, kInfinity, -kInfinity})
        for (bool bfloat16 : {false, true})
          CHECK(says(damaged(type, name, [&](auto& t, size_t i) { t[i].values.back() = bad; }, bfloat16), "BAD_FILE", name));
    CHECK(says(damaged(DType::f32, name, [](auto& t, size_t i) { t[i].shape.push_back(1); }), "BAD_SHAPE", name));
  }
  CHECK(says(damaged(DType::f32, "model.layers.1.self_attn.k_proj.bias", remove), "accepted", ""));
  CHECK(says(damaged(DType::f32, "lm_head.weight", [](auto& t, size_t i) { std::swap(t[i].shape[0], t[i].shape[1]); }), "BAD_SHAPE", "[10, 17], the configuration says [17, 10]"));
  CHECK(says(damaged(DType::f64, "lm_head.weight", [](auto& t, size_t i) { t[i].values[3] = 1e300; }), "BAD_FILE", "float32"));
  for (const char* name : {"lm_head.weight", "model.norm.weight"})
    CHECK(says(damaged(DType::f32, name, [](auto& t, size_t i) { t[i].values[3] = 3.4e38; }, true), "BAD_FILE", "bfloat16"));
  CHECK(says(damaged(DType::f32, "lm_head.weight", [](auto& t, size_t i) { t[i].type = DType::i32; }), "UNSUPPORTED", "lm_head.weight"));
  CHECK_THROWS("NOT_FOUND", "no weight files", Weights::load(tiny.config, {}, false, Cancel()));
  CHECK_THROWS("NOT_FOUND", "", Weights::load(tiny.config, {"no/such/file.safetensors"}, false, Cancel()));
}

TEST(weights_come_from_shards_and_name_the_one_at_fault) {
  const Tiny tiny(TinyOptions{});
  auto tensors = tensors_of(tiny, DType::f32);
  std::vector<TensorsFile::Tensor> first(tensors.begin(), tensors.begin() + 5), second(tensors.begin() + 5, tensors.end());
  {
    const TensorsFile a(first), b(second);
    CHECK(Weights::load(tiny.config, {a.path(), b.path()}, false, Cancel())->shapes().size() == tensors.size());
    CHECK_THROWS("BAD_FILE", "no tensor", Weights::load(tiny.config, {a.path()}, false, Cancel()));
  }
  second[2].values[0] = kNaN;
  const TensorsFile a(first), b(second);
  CHECK_THROWS("BAD_FILE", b.path() + ": " + second[2].name, Weights::load(tiny.config, {a.path(), b.path()}, false, Cancel()));
}

TEST(weights_tied_are_found_under_either_name) {
  const Tiny tiny(TinyOptions{0, false, true, true, true, 0});
  auto tensors = tensors_of(tiny, DType::f32);
  for (auto& t : tensors)
    if (t.name == "model.embed_tokens.weight") t.name = "lm_head.weight";
  const TensorsFile file(tensors);
  const auto weights = Weights::load(tiny.config, {file.path()}, false, Cancel());
  const Network n = resolved(*weights, nullptr);
  CHECK(n.embedding.data && n.embedding.data == n.head.data);
}

TEST(weights_of_a_bank_must_fit_too) {
  for (const char* name : {"model.norm.weight", "model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.down_proj.weight"}) {
    Tiny tiny(TinyOptions{});
    tiny.weights[name] = tiny.adapters[0][0].a;
    const Bank bank = tiny.bank();
    CHECK_THROWS("BAD_SHAPE", name, resolved(*Weights::none(tiny.config), &bank));
    tiny.weights.erase(name);
    const Bank without = tiny.bank();
    if (std::string(name).find("bias") != std::string::npos) CHECK(!resolved(*Weights::none(tiny.config), &without).layers[0].linear[kQ].bias);
    else CHECK_THROWS("NOT_FOUND", name, resolved(*Weights::none(tiny.config), &without));
  }
}

TEST(weights_may_be_trained_in_part) {
  Tiny all(TinyOptions{0, true, false, true, true, 0});
  const TensorsFile file(tensors_of(all, DType::f32));
  const Bank whole = all.bank();
  Machine machine(Isa::generic, 1);
  const TinyPack p = forest_pack(true);
  const auto run = [&](const Bank& bank) {
    Model model(all.config, Weights::load(all.config, {file.path()}, false, Cancel()), false);
    score(model, machine.context, p, &bank, {false, true, false, 0});
    model.backward(machine.context, bank, p.gradient.data(), int64_t(p.gradient.size()), Cancel());
  };
  run(whole);
  for (const auto& [name, index] : all.weights) {
    Tiny one(all.options);
    one.weights = {{name, index}};
    const Bank bank = one.bank();
    run(bank);
    CHECK_BITS(name, one.gradient_of(index, index + 1), all.gradient_of(index, index + 1));
    for (const auto& [other, i] : all.weights)
      if (other != name)
        for (float g : one.gradient_of(i, i + 1))
          if (!CHECK(g == 0)) return;
  }
}

TEST(weights_loading_stops_on_request) {
  const Tiny tiny(TinyOptions{});
  const TensorsFile file(tensors_of(tiny, DType::f32));
  const int32_t flag = 1;
  CHECK_THROWS("ABORTED", "", Weights::load(tiny.config, {file.path()}, false, Cancel(&flag, nullptr)));
}
