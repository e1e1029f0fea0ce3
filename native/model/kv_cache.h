// Keys and values of the sequences that are being written, each with memory of its own for as long as it lasts.
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "config.h"
#include "device_cache.h"
#include "ops/attention/cached.h"

namespace pluralign {

class KvCache {
 public:
  KvCache(const ModelConfig& config, const Kernels& kernels, int storage)
      : layout_(kernels, storage, config.head_dim), layers_(config.layers), heads_(config.kv_heads) {}
  // On a device; the CPU's where it is that.
  KvCache(const ModelConfig& config, const Kernels& kernels, const Device& device, int storage) : KvCache(config, kernels, storage) {
    if (!device.on_cpu()) on_device_ = std::make_unique<DeviceCache>(config, device, storage);
  }
  const DeviceCache* on_device() const { return on_device_.get(); }

  // Bytes that a sequence of so many tokens takes.
  int64_t bytes(int64_t tokens) const { return on_device_ ? on_device_->bytes(tokens) : layers_ * layer_bytes(capacity(tokens)); }
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
    s.data.reset(new (kLine) char[size_t(layers_ * layer_bytes(s.capacity))]);
    held_ += bytes(tokens);
    return int(slot);
  }
  void close(int slot) {
    if (on_device_) return on_device_->close(slot);
    Slot& s = slots_[size_t(slot)];
    held_ -= layers_ * layer_bytes(s.capacity);
    s.data.reset();
  }

  // The first `length` positions of one slot into another, which has room for them.
  void copy(int from, int to, int64_t length) {
    if (on_device_) return on_device_->copy(from, to, length);
    const int64_t whole = capacity(length);
    for (int64_t l = 0; l < layers_; ++l) {
      const CachedSequence a = sequence(l, from, 0, 0, 0), b = sequence(l, to, 0, 0, 0);
      for (int64_t h = 0; h < heads_; ++h) {
        std::memcpy(b.keys + h * layout_.key_bytes(b.capacity), a.keys + h * layout_.key_bytes(a.capacity), size_t(layout_.key_bytes(whole)));
        for (int64_t p = 0; p < layout_.value_panels(); ++p)
          std::memcpy(b.values + h * layout_.value_bytes(b.capacity) + p * layout_.value_panel_bytes(b.capacity),
                      a.values + h * layout_.value_bytes(a.capacity) + p * layout_.value_panel_bytes(a.capacity), size_t(layout_.value_panel_bytes(whole)));
      }
    }
  }

  CachedSequence sequence(int64_t layer, int slot, int64_t row, int64_t rows, int64_t prefix) const {
    const Slot& s = slots_[size_t(slot)];
    char* keys = s.data.get() + layer * layer_bytes(s.capacity);
    return {row, rows, prefix, keys, keys + heads_ * layout_.key_bytes(s.capacity), s.capacity};
  }

 private:
  // Panels of a whole number of cache lines begin at one.
  static constexpr std::align_val_t kLine{64};
  struct Freed {
    void operator()(char* data) const { ::operator delete[](data, kLine); }
  };
  struct Slot {
    int64_t capacity = 0;
    std::unique_ptr<char[], Freed> data;
  };
  int64_t capacity(int64_t tokens) const { return (tokens + layout_.multiple - 1) / layout_.multiple * layout_.multiple; }
  int64_t layer_bytes(int64_t capacity) const { return heads_ * (layout_.key_bytes(capacity) + layout_.value_bytes(capacity)); }

  const CachedLayout layout_;
  int64_t layers_, heads_, held_ = 0, limit_ = INT64_MAX;
  std::vector<Slot> slots_;
  std::unique_ptr<DeviceCache> on_device_;
};

}  // namespace pluralign
