// Linear layers on the GPU: the dense product, then what adapters add to it.
#include "cuda/context.h"

namespace pluralign::cuda {
namespace {

constexpr int kThreads = 256;

// Rows of `from` (ld apart) rounded to bfloat16, side by side.
__global__ void round_kernel(bf16* to, const float* from, int64_t count, int64_t width, int64_t ld) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) to[i] = round_bf16(from[i / width * ld + i % width]);
}

__global__ void bias_backward_kernel(float* dbias, const float* dy, int64_t rows, int64_t width, int64_t ld) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= width) return;
  float sum = 0;
  for (int64_t r = 0; r < rows; ++r) sum += dy[r * ld + i];
  dbias[i] += sum;
}

struct Matrix {
  const void* data;
  DType type;
  int64_t ld;
};

// A float32 matrix as products of bfloat16 want it; any other as it is.
Matrix as_operand(Context& context, Slot slot, const Matrix& m, int64_t rows, int64_t width, int storage) {
  if (storage == kF32 || m.type == DType::bf16) return m;
  bf16* rounded = context.scratch<bf16>(slot, rows * width);
  if (rows * width > 0)
    PLURALIGN_LAUNCH(round_kernel, blocks(ceil_div(rows * width, kThreads)), kThreads, 0, context.stream, rounded, static_cast<const float*>(m.data), rows * width, width, m.ld);
  return {rounded, DType::bf16, width};
}

}  // namespace

void linear(Context& context, const device::LinearCall& c) {
  if (c.rows <= 0) return;
  const DType type = c.storage == kF32 ? DType::f32 : DType::bf16;
  for (int i = 0; i < c.count; ++i) {
    const device::LinearPart& p = c.part[i];
    if (!p.weight.data) continue;  // adapters alone
    const Matrix w = as_operand(context, kSlotProductB, {p.weight.data, p.weight.type, p.weight.ld}, p.out, c.in, c.storage);
    product(context, {c.rows, p.out, c.in, c.x, w.data, type, w.type, c.residual ? DType::f32 : type, false, true, c.in, w.ld, p.ldy, p.y, 1.f, p.bias, c.residual != 0});
  }
  lora(context, c);
  context.check("linear");
}

void linear_backward(Context& context, const device::LinearCall& c) {
  if (c.rows <= 0) return;
  const DType type = c.storage == kF32 ? DType::f32 : DType::bf16;
  for (int i = 0; i < c.count; ++i) {
    const device::LinearPart& p = c.part[i];
    if (p.dbias) PLURALIGN_LAUNCH(bias_backward_kernel, blocks(ceil_div(p.out, 128)), 128, 0, context.stream, p.dbias, p.dy, c.rows, p.out, p.ldy);
    if ((c.dx && p.weight.data) || p.dweight) {
      const Matrix dy = as_operand(context, kSlotProductA, {p.dy, DType::f32, p.ldy}, c.rows, p.out, c.storage);
      if (p.dweight) product(context, {p.out, c.in, c.rows, dy.data, c.x, dy.type, type, DType::f32, true, false, dy.ld, c.in, c.in, p.dweight, 1.f, nullptr, true});
      if (c.dx && p.weight.data) {
        const Matrix w = as_operand(context, kSlotProductB, {p.weight.data, p.weight.type, p.weight.ld}, p.out, c.in, c.storage);
        product(context, {c.rows, c.in, p.out, dy.data, w.data, dy.type, w.type, DType::f32, false, false, dy.ld, w.ld, c.in, c.dx, 1.f, nullptr, i > 0});
      }
    }
  }
  lora_backward(context, c);
  context.check("linear");
}

}  // namespace pluralign::cuda
