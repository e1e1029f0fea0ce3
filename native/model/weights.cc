#include "weights.h"

#include <cmath>

#include "base/mapped_file.h"
#include "base/status.h"
#include "ops/gemm/bf16.h"

namespace pluralign {
namespace {

const TensorView* find_in(const std::vector<std::shared_ptr<SafetensorsFile>>& files, const std::string& name, std::string& path) {
  for (const auto& file : files)
    if (const TensorView* t = file->find(name)) {
      path = file->path();
      return t;
    }
  return nullptr;
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// Any exponent of all ones is an infinity or a NaN; the bits are enough.
bool finite(const TensorView& t) {
  const int64_t n = t.elements();
  if (t.dtype == DType::f32) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; ++i) {
      uint32_t u;
      std::memcpy(&u, t.data + i * 4, 4);
      bad |= uint32_t((u & 0x7f800000u) == 0x7f800000u);
    }
    return !bad;
  }
  if (t.dtype == DType::f64) return true;  // checked after conversion
  const uint16_t mask = t.dtype == DType::bf16 ? 0x7f80 : 0x7c00;
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint16_t u;
    std::memcpy(&u, t.data + i * 2, 2);
    bad |= uint32_t((u & mask) == mask);
  }
  return !bad;
}

}  // namespace

std::unique_ptr<Weights> Weights::none(const ModelConfig& config) {
  std::unique_ptr<Weights> w(new Weights(config));
  for (const WeightShape& s : weight_shapes(config))
    if (!s.optional) w->shapes_.push_back(s);
  return w;
}

std::unique_ptr<Weights> Weights::load(const ModelConfig& config, const std::vector<std::string>& paths, bool bfloat16, const Cancel& cancel) {
  std::unique_ptr<Weights> w(new Weights(config));
  if (bfloat16) w->activations_ = DType::bf16;
  for (const std::string& path : paths) w->files_.push_back(SafetensorsFile::open(path));
  if (w->files_.empty()) throw_error("NOT_FOUND", "no weight files");
  for (const WeightShape& shape : weight_shapes(config)) {
    cancel.check();
    std::string path = paths[0];  // of the shard that has it
    const TensorView* t = find_in(w->files_, shape.name, path);
    // A tied matrix is stored once, under either name.
    if (!t && config.tied && shape.name == "model.embed_tokens.weight") t = find_in(w->files_, "lm_head.weight", path);
    if (!t && shape.optional) continue;
    if (!t) throw_error("BAD_FILE", "%s: no tensor %s", path.c_str(), shape.name.c_str());
    const bool vector = shape.rows == 1;
    const std::vector<int64_t> expected = vector ? std::vector<int64_t>{shape.cols} : std::vector<int64_t>{shape.rows, shape.cols};
    if (t->shape != expected)
      throw_error("BAD_SHAPE", "%s: %s has shape %s, the configuration says %s", path.c_str(), shape.name.c_str(),
                  shape_text(t->shape).c_str(), shape_text(expected).c_str());
    if (t->dtype != DType::f32 && t->dtype != DType::bf16 && t->dtype != DType::f16 && t->dtype != DType::f64)
      throw_error("UNSUPPORTED", "%s: %s has dtype %s; expected F32, BF16, F16 or F64", path.c_str(), shape.name.c_str(), t->dtype_name.c_str());
    if (!finite(*t)) throw_error("BAD_FILE", "%s: %s has a NaN or an infinity", path.c_str(), shape.name.c_str());

    Held& held = w->held_[shape.name];
    held.view = {t->data, t->dtype, shape.rows, shape.cols, nullptr, nullptr};
    const bool wanted = !vector && t->aligned(dtype_size(t->dtype)) &&
                        (t->dtype == DType::bf16 || (!bfloat16 && (t->dtype == DType::f32 || t->dtype == DType::f16)));
    if (!wanted) {
      const int64_t n = t->elements();
      float* floats = held.own.as<float>(n);
      copy_to_float(*t, floats);
      const auto check_range = [&](float x, const char* type) {
        if (!std::isfinite(x)) throw_error("BAD_FILE", "%s: %s does not fit %s", path.c_str(), shape.name.c_str(), type);
      };
      for (int64_t i = 0; i < n; ++i) check_range(floats[i], "float32");
      held.view.data = floats;
      held.view.type = DType::f32;
      if (bfloat16 && vector) {
        for (int64_t i = 0; i < n; ++i) check_range(floats[i] = to_float(to_bf16(floats[i])), "bfloat16");
      } else if (bfloat16) {
        Buffer rounded;
        bf16* out = rounded.as<bf16>(n);
        for (int64_t i = 0; i < n; ++i) check_range(to_float(out[i] = to_bf16(floats[i])), "bfloat16");
        held.own = std::move(rounded);
        held.view.data = held.own.data();
        held.view.type = DType::bf16;
      }
    }
    w->shapes_.push_back(shape);
  }
  return w;
}

Weight Weights::find(const Device& device, const std::string& name, const PlacedBank* bank) const {
  if (bank)
    if (const auto& named = bank->bank().weights(); named.count(name)) {
      const int index = named.at(name);
      const Factor& f = bank->bank().factor(index);
      return {bank->values(index), DType::f32, f.rows, f.cols, bank->gradient(index), nullptr};
    }
  const auto it = held_.find(name);
  if (it == held_.end()) return {};
  Weight w = it->second.view;
  if (device.on_cpu() == (it->second.moved.data() != nullptr)) throw_error("BAD_ARGUMENT", "the model's weights are on another device");
  if (!packed_for_) return w;
  if (const auto p = packed_.find(name); p != packed_.end()) w.packed = &p->second;
  return w;
}

Network Weights::resolve(const Device& device, const PlacedBank* bank) const {
  Network n;
  const auto maybe = [&](const std::string& name, int64_t rows, int64_t cols) {
    const Weight w = find(device, name, bank);
    if (w && w.rows * w.cols != rows * cols) throw_error("BAD_SHAPE", "%s: found %lld x %lld, expected %lld x %lld", name.c_str(), (long long)w.rows,
                                                         (long long)w.cols, (long long)rows, (long long)cols);
    return w;
  };
  const auto need = [&](const std::string& name, int64_t rows, int64_t cols) {
    const Weight w = maybe(name, rows, cols);
    if (!w) throw_error("NOT_FOUND", "the model has no weight %s and the bank does not train it", name.c_str());
    return w;
  };
  const ModelConfig& c = config_;
  n.trains_base = bank && !bank->bank().weights().empty();
  n.embedding = need("model.embed_tokens.weight", c.vocabulary, c.hidden);
  n.final_norm = need("model.norm.weight", 1, c.hidden);
  n.head = c.tied ? n.embedding : need("lm_head.weight", c.vocabulary, c.hidden);
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string prefix = "model.layers." + std::to_string(l) + ".";
    LayerWeights& layer = n.layers.emplace_back();
    layer.input_norm = need(prefix + "input_layernorm.weight", 1, c.hidden);
    layer.post_norm = need(prefix + "post_attention_layernorm.weight", 1, c.hidden);
    if (c.qk_norm) {
      layer.q_norm = need(prefix + "self_attn.q_norm.weight", 1, c.head_dim);
      layer.k_norm = need(prefix + "self_attn.k_norm.weight", 1, c.head_dim);
    }
    for (int t = 0; t < kTargets; ++t) {
      layer.linear[t].weight = need(target_name(l, t) + ".weight", target_out(c, t), target_in(c, t));
      layer.linear[t].bias = maybe(target_name(l, t) + ".bias", 1, target_out(c, t));
    }
  }
  return n;
}

void Weights::pack(Context& context, const Cancel& cancel) {
  if (packed_for_ == &context.kernels) return;
  packed_.clear();
  packed_for_ = nullptr;
  for (auto& [name, held] : held_) {
    const Weight& w = held.view;
    if (w.rows == 1 || (!config_.tied && name == "model.embed_tokens.weight")) continue;
    cancel.check();
    PackedOperand& packed = packed_[name];
    if (!runs_in_bf16(context.kernels, activations_, w.type, activations_ == DType::bf16)) {
      pack_right(context.kernels, packed, transposed(w.data, w.type, w.cols), w.rows, w.cols, false);
      continue;
    }
    packed.n = w.rows;
    packed.k = w.cols;
    packed.bfloat16 = true;
    const Bf16Packing packing{packed.panels.as<bf16>(bf16_panels(w.rows, w.cols)), Side::right, transposed(w.data, w.type, w.cols), w.rows, w.cols};
    pack_bf16(context, &packing, 1);
    if (!held.own.data()) forget_pages(static_cast<const std::byte*>(w.data), size_t(w.rows * w.cols) * dtype_size(w.type));
  }
  packed_for_ = &context.kernels;
}

void Weights::settle(const Device& device, const Cancel& cancel) {
  if (!device.on_cpu()) return move(device, cancel);
  // Where products run in bfloat16, packing in every product would cost as much as a fifth of it. Small weights would be
  // packed for every share of a pack.
  Context& context = device.cpu("");
  if ((context.kernels.multiply_bf16 && activations_ == DType::bf16) || in_cache()) pack(context, cancel);
}

int64_t Weights::elements() const {
  int64_t total = 0;
  for (const WeightShape& s : shapes_) total += s.rows * s.cols;
  return total;
}

void Weights::move(const Device& device, const Cancel& cancel) {
  constexpr int64_t kPiece = int64_t(1) << 20;  // elements that are converted at a time
  std::vector<float> floats;
  for (auto& [name, held] : held_) {
    if (held.moved.data()) continue;
    cancel.check();
    Weight& w = held.view;
    const int64_t n = w.rows * w.cols;
    const DType type = w.rows == 1 ? DType::f32 : activations_;
    DeviceBuffer moved("weights");
    auto* to = static_cast<char*>(moved.get(device, size_t(n) * dtype_size(type)));
    if (type == w.type) device.upload(to, w.data, size_t(n) * dtype_size(type));
    else  // float32 is wanted: bfloat16 compute has been given bfloat16 by load()
      for (int64_t at = 0; at < n; at += kPiece) {
        const int64_t count = std::min(kPiece, n - at);
        floats.resize(size_t(count));
        for (int64_t i = 0; i < count; ++i)
          floats[size_t(i)] = w.type == DType::bf16 ? to_float(static_cast<const bf16*>(w.data)[at + i]) : to_float(static_cast<const f16*>(w.data)[at + i]);
        device.upload(to + at * 4, floats.data(), size_t(count) * 4);
      }
    if (!held.own.data()) forget_pages(static_cast<const std::byte*>(w.data), size_t(n) * dtype_size(w.type));
    held.own.release();
    w.data = to;
    w.type = type;
    held.moved = std::move(moved);
  }
}

int64_t Weights::bytes() const {
  int64_t total = 0;
  for (const auto& [name, held] : held_) total += int64_t(held.own.bytes() + held.moved.bytes());
  for (const auto& [name, p] : packed_) total += int64_t(p.panels.bytes());
  return total;
}

}  // namespace pluralign
