// Keys and values of the sequences that are being written, each with memory of its own for as long as it lasts.
#pragma once
#include <algorithm>
#include <memory>

#include "config.h"
#include "device_cache.h"
#include "ops/attention/cached.h"

namespace pluralign {

class KvCache {
 public:
  KvCache(const ModelConfig& config, const Kernels& kernels)
      : kernels_(kernels), layers_(config.layers), shape_{config.heads, config.kv_heads, config.head_dim, 0, 0} {}
  // On a device; the CPU's where it is that.
  KvCache(const ModelConfig& config, const Kernels& kernels, const Device& device, int storage) : KvCache(config, kernels) {
    if (!device.on_cpu()) on_device_ = std::make_unique<DeviceCache>(config, device, storage);
  }
  const DeviceCache* on_device() const { return on_device_.get(); }

  // Bytes that a sequence of so many tokens takes.
  int64_t bytes(int64_t tokens) const { return on_device_ ? on_device_->bytes(tokens) : layers_ * layer_size(capacity(tokens)) * 4; }
  int64_t bytes_held() const { return on_device_ ? on_device_->bytes_held() : held_; }
  // Bytes at most, for has_room; said before the first sequence.
  void limit(int64_t bytes_at_most) {
    limit_ = bytes_at_most;
    if (on_device_) on_device_->limit(bytes_at_most);
  }
  // Whether so many sequences of at most `tokens` each fit beside those that are open.
  bool has_room(int64_t tokens, int64_t sequences) const {
    return on_device_ ? on_device_->has_room(tokens, sequences) : held_ + bytes(tokens) * sequences <= limit_;
  }

  // Room for a sequence of at most `tokens`; gives its slot.
  int open(int64_t tokens) {
    if (on_device_) return on_device_->open(tokens);
    size_t slot = 0;
    while (slot < slots_.size() && slots_[slot].data) ++slot;
    if (slot == slots_.size()) slots_.emplace_back();
    Slot& s = slots_[slot];
    s.capacity = capacity(tokens);
    // Left as it is: products read whole panels, but no result has a lane behind the last position in it.
    s.data.reset(new float[size_t(layers_ * layer_size(s.capacity))]);
    held_ += bytes(tokens);
    return int(slot);
  }
  void close(int slot) {
    if (on_device_) return on_device_->close(slot);
    Slot& s = slots_[size_t(slot)];
    held_ -= layers_ * layer_size(s.capacity) * 4;
    s.data.reset();
  }

  // The first `length` positions of one slot into another, which has room for them.
  void copy(int from, int to, int64_t length) {
    if (on_device_) return on_device_->copy(from, to, length);
    const int64_t nr = kernels_.nr, whole = capacity(length), panels = (shape_.head_dim + nr - 1) / nr;
    for (int64_t l = 0; l < layers_; ++l) {
      const CachedSequence a = sequence(l, from, 0, 0, 0), b = sequence(l, to, 0, 0, 0);
      for (int64_t h = 0; h < shape_.kv_heads; ++h) {
        const float* keys = a.keys + h * cached_key_size(shape_, kernels_, a.capacity);
        std::copy(keys, keys + whole * shape_.head_dim, b.keys + h * cached_key_size(shape_, kernels_, b.capacity));
        for (int64_t p = 0; p < panels; ++p) {
          const float* values = a.values + h * cached_value_size(shape_, kernels_, a.capacity) + p * a.capacity * nr;
          std::copy(values, values + length * nr, b.values + h * cached_value_size(shape_, kernels_, b.capacity) + p * b.capacity * nr);
        }
      }
    }
  }

  CachedSequence sequence(int64_t layer, int slot, int64_t row, int64_t rows, int64_t prefix) const {
    const Slot& s = slots_[size_t(slot)];
    float* keys = s.data.get() + layer * layer_size(s.capacity);
    return {row, rows, prefix, keys, keys + shape_.kv_heads * cached_key_size(shape_, kernels_, s.capacity), s.capacity};
  }

 private:
  struct Slot {
    int64_t capacity = 0;
    std::unique_ptr<float[]> data;
  };
  int64_t capacity(int64_t tokens) const { return (tokens + kernels_.nr - 1) / kernels_.nr * kernels_.nr; }
  int64_t layer_size(int64_t capacity) const {
    return shape_.kv_heads * (cached_key_size(shape_, kernels_, capacity) + cached_value_size(shape_, kernels_, capacity));
  }

  const Kernels& kernels_;
  int64_t layers_, held_ = 0, limit_ = INT64_MAX;
  AttentionShape shape_;
  std::vector<Slot> slots_;
  std::unique_ptr<DeviceCache> on_device_;
};

}  // namespace pluralign
