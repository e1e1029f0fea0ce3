// Keys and values of the sequences that are being written, on a device other than the CPU: rows of one buffer, layer by layer, as
// attention_cached of device/operators.h reads them. A sequence's rows lie behind each other; the buffer grows as they need, up to
// its limit.
#pragma once
#include <algorithm>

#include "config.h"
#include "device/device.h"

namespace pluralign {

class DeviceCache {
 public:
  DeviceCache(const ModelConfig& config, const Device& device, int storage) : device_(device), layers_(config.layers), row_bytes_(row_bytes(config, storage)) {}

  static int64_t row_bytes(const ModelConfig& config, int storage) {
    return 2 * config.kv_heads * (config.head_dim <= 64 ? 64 : 128) * (storage == kF32 ? 4 : 2);
  }
  const Device& device() const { return device_; }
  int64_t bytes(int64_t tokens) const { return layers_ * row_bytes_ * tokens; }
  int64_t bytes_held() const { return bytes(used_); }

  // So many bytes at most, but what stands in it by itself. Before the first sequence.
  void limit(int64_t bytes_at_most) { limit_ = bytes_at_most / bytes(1); }
  // Whether so many sequences find a place within the limit, one behind the other.
  bool has_room(int64_t tokens, int64_t sequences) const {
    const int64_t rows = std::max<int64_t>(tokens, 1) * sequences;
    return gap(rows) + rows <= limit_;
  }
  int open(int64_t tokens) {
    size_t slot = 0;
    while (slot < slots_.size() && slots_[slot].rows > 0) ++slot;
    if (slot == slots_.size()) slots_.emplace_back();
    const int64_t rows = std::max<int64_t>(tokens, 1);
    const int64_t row = gap(rows);
    if (row + rows > rows_) grow(row + rows);
    slots_[slot] = {row, rows};
    used_ += rows;
    return int(slot);
  }
  void close(int slot) {
    used_ -= slots_[size_t(slot)].rows;
    slots_[size_t(slot)] = {};
  }
  void copy(int from, int to, int64_t length) {
    for (int64_t l = 0; l < layers_; ++l) device_.copy(at(l, row(to)), at(l, row(from)), size_t(length * row_bytes_));
  }
  int64_t row(int slot) const { return slots_[size_t(slot)].row; }
  void* layer(int64_t l) const { return at(l, 0); }

 private:
  struct Slot {
    int64_t row = 0, rows = 0;
  };
  char* at(int64_t layer, int64_t row) const { return static_cast<char*>(buffer_.data()) + (layer * rows_ + row) * row_bytes_; }
  // The first row behind which so many are free.
  int64_t gap(int64_t rows) const {
    std::vector<Slot> open;
    for (const Slot& s : slots_)
      if (s.rows > 0) open.push_back(s);
    std::sort(open.begin(), open.end(), [](const Slot& a, const Slot& b) { return a.row < b.row; });
    int64_t end = 0;
    for (const Slot& s : open) {
      if (s.row - end >= rows) break;
      end = s.row + s.rows;
    }
    return end;
  }
  // Twice as many rows within the limit, or what is needed: the old and the new ones are held for a moment.
  void grow(int64_t needed) {
    const int64_t rows = std::max(needed, std::min(2 * rows_, limit_));
    DeviceBuffer larger("keys and values");
    auto* to = static_cast<char*>(larger.get(device_, size_t(bytes(rows))));
    for (int64_t l = 0; l < layers_ && rows_ > 0; ++l) device_.copy(to + l * rows * row_bytes_, at(l, 0), size_t(rows_ * row_bytes_));
    buffer_ = std::move(larger);
    rows_ = rows;
  }

  Device device_;
  int64_t layers_, row_bytes_, rows_ = 0, used_ = 0, limit_ = INT64_MAX;
  DeviceBuffer buffer_{"keys and values"};
  std::vector<Slot> slots_;
};

}  // namespace pluralign
