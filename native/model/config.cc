#include "config.h"

namespace pluralign {

int64_t target_out(const ModelConfig& c, int target) {
  switch (target) {
    case kQ: return c.q_width();
    case kK: case kV: return c.kv_width();
    case kGate: case kUp: return c.intermediate;
    default: return c.hidden;
  }
}

int64_t target_in(const ModelConfig& c, int target) {
  return target == kO ? c.q_width() : target == kDown ? c.intermediate : c.hidden;
}

std::string target_name(int64_t layer, int target) {
  static const char* const names[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                      "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"};
  return "model.layers." + std::to_string(layer) + "." + names[target];
}

std::vector<WeightShape> weight_shapes(const ModelConfig& c) {
  std::vector<WeightShape> shapes{{"model.embed_tokens.weight", c.vocabulary, c.hidden, false}};
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string layer = "model.layers." + std::to_string(l) + ".";
    shapes.push_back({layer + "input_layernorm.weight", 1, c.hidden, false});
    for (int t = 0; t < kTargets; ++t) {
      shapes.push_back({target_name(l, t) + ".weight", target_out(c, t), target_in(c, t), false});
      shapes.push_back({target_name(l, t) + ".bias", 1, target_out(c, t), true});
    }
    if (c.qk_norm) {
      shapes.push_back({layer + "self_attn.q_norm.weight", 1, c.head_dim, false});
      shapes.push_back({layer + "self_attn.k_norm.weight", 1, c.head_dim, false});
    }
    shapes.push_back({layer + "post_attention_layernorm.weight", 1, c.hidden, false});
  }
  shapes.push_back({"model.norm.weight", 1, c.hidden, false});
  if (!c.tied) shapes.push_back({"lm_head.weight", c.vocabulary, c.hidden, false});
  return shapes;
}

}  // namespace pluralign
