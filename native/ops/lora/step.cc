#include "step.h"

#include <algorithm>

namespace pluralign {
namespace {

constexpr int64_t kTaskRows = 8;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t even(int64_t n) { return (n + 1) / 2 * 2; }

// A's products wait for A unless somebody asked for it while the task before was at its B, and the other way round.
void fetch(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < std::min<int64_t>(bytes, 12288); i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

// x Aᵀ through the core.
const float* through_core(const Kernels& kernels, const LoraModule& m, int64_t rows, float* h, float* out) {
  if (m.core_rows == 0) return h;
  if (m.core_rows > 1) {
    kernels.dots(rows, m.r, m.r, h, DType::f32, m.r, m.core, m.r, out, m.r);
    return out;
  }
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < m.r; ++j) h[i * m.r + j] *= m.core[j];
  return h;
}

}  // namespace

int64_t step_a_bytes(int storage, int64_t r, int64_t in) { return storage == kF32 ? 0 : r * ceil_div(in, 32) * 64; }

int64_t step_b_bytes(const Kernels& kernels, int storage, int64_t out, int64_t r) {
  if (storage == kF32) return ceil_div(out, kernels.nr) * kernels.nr * r * 4;
  return ceil_div(out, 16) * even(r) * 32;
}

void pack_step_a(const Kernels& kernels, void* to, const float* a, int64_t r, int64_t in) { kernels.step_pack_a(static_cast<bf16*>(to), a, r, in); }

void pack_step_b(const Kernels& kernels, int storage, void* to, const float* b, int64_t out, int64_t r) {
  if (storage == kF32) kernels.pack_b(static_cast<float*>(to), b, DType::f32, out, r, r, 1);
  else kernels.step_pack_b(static_cast<bf16*>(to), b, out, r);
}

void lora_step(Context& context, int storage, const void* x, int64_t in, const StepRange* ranges, int64_t count, bool accumulate) {
  int64_t tasks = 0;
  for (int64_t i = 0; i < count; ++i) tasks += ceil_div(ranges[i].rows, kTaskRows);
  StepRange* cut = context.shared[0].as<StepRange>(tasks);
  tasks = 0;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t row = 0; row < ranges[i].rows; row += kTaskRows) {
      StepRange& t = cut[tasks++] = ranges[i];
      t.row += row;
      t.y += row * t.ldy;
      t.rows = std::min(kTaskRows, ranges[i].rows - row);
    }
  const int64_t element = storage == kF32 ? 4 : 2;
  context.pool.run(tasks, [&](int64_t i, int thread) {
    const Kernels& kr = context.kernels;
    const StepRange& t = cut[i];
    const LoraModule& m = *t.module->module;
    auto& slot = context.local[size_t(thread)].slot;
    const auto fetch_next = [&] {
      const int64_t next = i + context.pool.size();
      if (next < tasks) fetch(cut[next].module->a, cut[next].module->module->r * in * element);
    };
    fetch(t.module->b, t.out * m.r * element);
    float *h = slot[0].as<float>(t.rows * m.r), *cored = slot[1].as<float>(t.rows * m.r);
    if (storage == kF32) {
      kr.dots(t.rows, m.r, in, static_cast<const float*>(x) + t.row * in, DType::f32, in, static_cast<const float*>(t.module->a), in, h, m.r);
      fetch_next();
      return kr.up(t.rows, t.out, m.r, through_core(kr, m, t.rows, h, cored), m.r, static_cast<const float*>(t.module->b), t.y, DType::f32, t.ldy, m.scale, accumulate);
    }
    kr.step_down(t.rows, m.r, in, static_cast<const bf16*>(x) + t.row * in, in, static_cast<const bf16*>(t.module->a), h);
    const float* from = through_core(kr, m, t.rows, h, cored);
    const int64_t width = even(m.r);
    bf16* left = slot[2].as<bf16>(t.rows * width);
    for (int64_t r = 0; r < t.rows; ++r) {
      for (int64_t j = 0; j < m.r; ++j) left[r * width + j] = to_bf16(from[r * m.r + j] * m.scale);
      if (width > m.r) left[r * width + m.r] = bf16{};
    }
    fetch_next();
    kr.step_up(t.rows, t.out, m.r, left, static_cast<const bf16*>(t.module->b), t.y, t.ldy, accumulate);
  });
}

}  // namespace pluralign
