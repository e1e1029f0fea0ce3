// The numbers that describe a decoder; see NativeModelConfig in lib/native/addon.ts.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace pluralign {

struct ModelConfig {
  int64_t vocabulary = 0, hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, window = 0;
  double eps = 0, rope_factor = 1;
  std::vector<double> rope_frequencies;  // [head_dim / 2]
  bool qk_norm = false, tied = false;

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }
  int64_t qkv_width() const { return q_width() + 2 * kv_width(); }
};

// The seven linears of a layer, in the order that adapters number them.
enum Target : int { kQ, kK, kV, kO, kGate, kUp, kDown, kTargets };

struct WeightShape {
  std::string name;  // as Hugging Face names it
  int64_t rows, cols;
  bool optional;  // biases: there where the file has them
};

// Every weight a model of this configuration has, embedding first.
std::vector<WeightShape> weight_shapes(const ModelConfig& config);

int64_t target_out(const ModelConfig& config, int target);
int64_t target_in(const ModelConfig& config, int target);
std::string target_name(int64_t layer, int target);  // model.layers.0.self_attn.q_proj

}  // namespace pluralign
