#include "linear.h"

#include "fused.h"

namespace pluralign {
namespace {

DType type_of(int storage) { return storage == kF32 ? DType::f32 : DType::bf16; }

LoraCall lora_call(const LinearCall& c, const LinearPart& p, const std::vector<LoraRange>& ranges) {
  return {ranges, c.in, p.out, c.storage, c.x, p.h, c.h_stride, c.row_keys, c.storage == kBf16};
}

}  // namespace

void linear_forward(Context& context, const LinearCall& c, bool residual) {
  if (c.rows <= 0) return;
  const bool fused = fuses(context, c);
  if (fused) fused_forward(context, c, residual);
  for (int64_t i = 0; i < c.count; ++i) {
    const LinearPart& p = c.parts[i];
    if (!fused) {
      Gemm g{c.rows, p.out, c.in, matrix(c.x, type_of(c.storage), c.in), {p.weight.data, p.weight.type, 1, p.weight.row_stride}, p.y,
             residual ? DType::f32 : type_of(c.storage), p.ldy};
      g.bias = p.bias;
      g.accumulate = residual;
      g.packed = p.packed;
      g.bfloat16 = c.storage == kBf16;
      gemm(context, g);
    }
    const std::vector<LoraRange>& apart = fused ? unfused(context, *p.ranges) : *p.ranges;
    if (!apart.empty()) lora_forward(context, lora_call(c, p, apart), p.y, p.ldy, residual);
  }
}

void linear_backward(Context& context, const LinearCall& c, float* dx) {
  if (c.rows <= 0) return;
  const bool fused = fuses(context, c);
  if (fused) fused_backward(context, c, dx);
  for (int64_t i = 0; i < c.count; ++i) {
    const LinearPart& p = c.parts[i];
    if (!fused && dx) {
      Gemm g{c.rows, c.in, p.out, matrix(p.dy, DType::f32, p.ldy), p.weight, dx, DType::f32, c.in};
      g.accumulate = i > 0;
      g.bfloat16 = c.storage == kBf16;
      gemm(context, g);
    }
    const std::vector<LoraRange>& apart = fused ? unfused(context, *p.ranges) : *p.ranges;
    if (!apart.empty()) lora_backward(context, lora_call(c, p, apart), p.dy, p.ldy, dx);
  }
}

}  // namespace pluralign
