// Rotary positions (Su et al. 2021, half-rotation layout) on queries and keys, with Qwen3's norm of each head before it.
#pragma once
#include "ops/table.h"

namespace pluralign {

// Of each position its cosines, then its sines, `half` each.
struct RopeView {
  const float* values;
  int64_t half;
  const float* cos(int64_t position) const { return values + position * 2 * half; }
  const float* sin(int64_t position) const { return cos(position) + half; }
};

// cos and sin of position · inverse frequency, grown on demand; angles are rounded to float32 as transformers does.
class RopeTable {
 public:
  // True where it grew.
  bool reserve(int64_t positions, const double* inverse_frequencies, int64_t half, double factor);
  const std::vector<float>& values() const { return values_; }
  const float* cos(int64_t position) const { return RopeView(*this).cos(position); }
  const float* sin(int64_t position) const { return RopeView(*this).sin(position); }
  operator RopeView() const { return {values_.data(), half_}; }

 private:
  std::vector<float> values_;
  int64_t positions_ = 0, half_ = 0;
};

struct RopeShape {
  int64_t heads, kv_heads, head_dim;
  const float* q_norm;  // [head_dim], or null
  const float* k_norm;
  float eps;
};

// raw [rows × (heads + 2 kv_heads) · head_dim] in `storage` → out, float32: queries and keys normed and rotated, values
// copied. positions [rows].
void rope(Context& context, const RopeShape& shape, const RopeView& table, int storage, float* out, const void* raw, const int32_t* positions, int64_t rows);

// In place: d holds the gradient of `out` and becomes that of `raw`. dq_norm, dk_norm (may be null): += gradient.
void rope_backward(Context& context, const RopeShape& shape, const RopeView& table, int storage, float* d, const void* raw,
                   const int32_t* positions, int64_t rows, float* dq_norm, float* dk_norm);

}  // namespace pluralign
