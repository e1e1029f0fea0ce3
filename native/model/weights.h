// The base model's weights: views into mapped safetensors files, or the factors of a bank that trains them.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "placed.h"
#include "base/cancel.h"
#include "safetensors.h"

namespace pluralign {

// A weight as the decoder sees it in one pass. `grad` is null where it is frozen.
struct Weight {
  const void* data = nullptr;
  DType type = DType::f32;
  int64_t rows = 0, cols = 0;
  float* grad = nullptr;
  const PackedOperand* packed = nullptr;

  const float* floats() const { return static_cast<const float*>(data); }
  device::View view() const { return {const_cast<void*>(data), type, 0, rows, cols, cols}; }
  explicit operator bool() const { return data != nullptr; }
};

struct Linear {
  Weight weight, bias;
};

struct LayerWeights {
  Weight input_norm, post_norm, q_norm, k_norm;
  Linear linear[kTargets];
};

struct Network {
  Weight embedding, final_norm, head;
  std::vector<LayerWeights> layers;
  bool trains_base = false;
};

class Weights {
 public:
  // Opens and checks every file; maps matrices of the wanted type, converts the others (float16 and, for bfloat16
  // compute, float32). Vectors (norms, biases) are held as float32. Refuses what is missing, misshapen or not finite.
  static std::unique_ptr<Weights> load(const ModelConfig& config, const std::vector<std::string>& files, bool bfloat16, const Cancel& cancel);
  // No weights: all come from a bank.
  static std::unique_ptr<Weights> none(const ModelConfig& config);

  // The weights a pass on this device uses: the bank's where it trains them. Throws NOT_FOUND where there are none.
  Network resolve(const Device& device, const PlacedBank* bank) const;
  // What passes on this device want done first: the CPU packs where that is faster, another device gets the weights, matrices
  // in the type of activations and vectors as float32. Weights live on one device.
  void settle(const Device& device, const Cancel& cancel);
  // Packs every linear and the head once. In bfloat16 that takes the place of the file's pages, 2 bytes a weight, and serves
  // forward and backward; else it takes 4 bytes a weight more, and is for passes over few rows (generation)
  // and for models that stay in a cache.
  void pack(Context& context, const Cancel& cancel);

  const std::vector<WeightShape>& shapes() const { return shapes_; }  // those that are there
  int64_t bytes() const;
  int64_t elements() const;  // of all weights
  // Whether they stay in a cache that threads share, so that each may read all of them.
  bool in_cache() const { return elements() * (activations_ == DType::bf16 ? 2 : 4) <= int64_t(16) << 20; }

 private:
  struct Held {
    Weight view;
    Buffer own;
    DeviceBuffer moved{"weights"};
  };
  explicit Weights(const ModelConfig& config) : config_(config) {}
  Weight find(const Device& device, const std::string& name, const PlacedBank* bank) const;
  void move(const Device& device, const Cancel& cancel);

  ModelConfig config_;
  DType activations_ = DType::f32;
  std::vector<std::shared_ptr<SafetensorsFile>> files_;
  std::map<std::string, Held> held_;
  std::map<std::string, PackedOperand> packed_;
  const Kernels* packed_for_ = nullptr;
  std::vector<WeightShape> shapes_;
};

}  // namespace pluralign
