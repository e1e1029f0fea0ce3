#include "lora.h"

namespace pluralign {
namespace {

DType type_of(int storage) { return storage == kF32 ? DType::f32 : DType::bf16; }

const void* row_at(const LoraCall& c, int64_t row) {
  return static_cast<const char*>(c.x) + row * c.in * int64_t(c.storage == kF32 ? 4 : 2);
}

uint64_t mix(uint64_t x) {  // splitmix64's finaliser: a counter in, 64 even bits out
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

bool drops(const LoraRange& r) { return r.module->dropout > 0.f && r.stream != 0; }

// Multiplies element (i, j) by 1/(1-p) or 0. The draw depends on the row's key, the column and the stream alone, so a row
// meets the same mask in whatever batch it stands.
void drop(Context& context, float* x, const LoraCall& c, const LoraRange& r) {
  const float keep = 1.f - r.module->dropout, scale = 1.f / keep;
  const uint64_t threshold = uint64_t(double(keep) * 4294967296.0);
  context.pool.ranges(r.rows, 8, [&](int64_t i, int64_t end, int) {
    for (; i < end; ++i) {
      const uint64_t key = mix(c.row_keys[r.row + i] ^ mix(r.stream));
      for (int64_t j = 0; j < c.in; ++j) x[i * c.in + j] *= (mix(key + uint64_t(j)) & 0xffffffffull) < threshold ? scale : 0.f;
    }
  });
}

// x of the range, dropped where the module asks for it (then as float32 in `buffer`).
Operand input(Context& context, const LoraCall& c, const LoraRange& r, Buffer& buffer) {
  const void* x = row_at(c, r.row);
  if (!drops(r)) return matrix(x, type_of(c.storage), c.in);
  float* copy = buffer.as<float>(r.rows * c.in);
  for (int64_t i = 0; i < r.rows * c.in; ++i)
    copy[i] = c.storage == kF32 ? static_cast<const float*>(x)[i] : to_float(static_cast<const bf16*>(x)[i]);
  drop(context, copy, c, r);
  return matrix(copy, DType::f32, c.in);
}

// h through the core into `buffer`; h itself where there is none.
Operand through_core(Context& context, const LoraModule& m, const float* h, int64_t stride, int64_t rows, Buffer& buffer) {
  if (m.core_rows == 0) return matrix(h, DType::f32, stride);
  float* out = buffer.as<float>(rows * m.r);
  if (m.core_rows == 1) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < m.r; ++j) out[i * m.r + j] = h[i * stride + j] * m.core[j];
  } else {
    gemm(context, {rows, m.r, m.r, matrix(h, DType::f32, stride), transposed(m.core, DType::f32, m.r), out, DType::f32, m.r});
  }
  return matrix(out, DType::f32, m.r);
}

void product(Context& context, const LoraCall& c, Gemm g) {
  g.bfloat16 = c.bfloat16;
  gemm(context, g);
}

}  // namespace

void lora_forward(Context& context, const LoraCall& c, void* y, int64_t ldy, bool y_f32) {
  Buffer &dropped = context.shared[0], &core = context.shared[1];
  for (const LoraRange& r : c.ranges) {
    const LoraModule& m = *r.module;
    float* h = c.h + r.row * c.h_stride;
    product(context, c, {r.rows, m.r, c.in, input(context, c, r, dropped), transposed(m.a, DType::f32, c.in), h, DType::f32, c.h_stride});
    const DType type = y_f32 ? DType::f32 : type_of(c.storage);
    Gemm up{r.rows, c.out, m.r, through_core(context, m, h, c.h_stride, r.rows, core), transposed(m.b, DType::f32, m.r),
            static_cast<char*>(y) + r.row * ldy * int64_t(dtype_size(type)), type, ldy};
    up.alpha = m.scale;
    up.accumulate = true;
    product(context, c, up);
  }
}

void lora_backward(Context& context, const LoraCall& c, const float* dy, int64_t ldy, float* dx) {
  Buffer &dropped = context.shared[0], &core = context.shared[1], &dcore_rows = context.shared[2], &dh_rows = context.shared[3], &dx_rows = context.shared[4];
  for (const LoraRange& r : c.ranges) {
    const LoraModule& m = *r.module;
    const float* h = c.h + r.row * c.h_stride;
    const float* d = dy + r.row * ldy;
    const Operand g = matrix(d, DType::f32, ldy);
    if (m.db) {
      Gemm to_b{c.out, m.r, r.rows, transposed(d, DType::f32, ldy), through_core(context, m, h, c.h_stride, r.rows, core), m.db, DType::f32, m.r};
      to_b.alpha = m.scale;
      to_b.accumulate = true;
      product(context, c, to_b);
    }
    float* dc = dcore_rows.as<float>(r.rows * m.r);  // gradient of what enters B
    Gemm to_core{r.rows, m.r, c.out, g, matrix(m.b, DType::f32, m.r), dc, DType::f32, m.r};
    to_core.alpha = m.scale;
    product(context, c, to_core);
    float* dh = dc;
    if (m.core_rows == 1) {
      dh = dh_rows.as<float>(r.rows * m.r);
      for (int64_t i = 0; i < r.rows; ++i)
        for (int64_t j = 0; j < m.r; ++j) {
          if (m.dcore) m.dcore[j] += dc[i * m.r + j] * h[i * c.h_stride + j];
          dh[i * m.r + j] = dc[i * m.r + j] * m.core[j];
        }
    } else if (m.core_rows > 1) {
      dh = dh_rows.as<float>(r.rows * m.r);
      if (m.dcore) {
        Gemm own{m.r, m.r, r.rows, transposed(dc, DType::f32, m.r), matrix(h, DType::f32, c.h_stride), m.dcore, DType::f32, m.r};
        own.accumulate = true;
        product(context, c, own);
      }
      product(context, c, {r.rows, m.r, m.r, matrix(dc, DType::f32, m.r), matrix(m.core, DType::f32, m.r), dh, DType::f32, m.r});
    }
    if (m.da) {
      Gemm to_a{m.r, c.in, r.rows, transposed(dh, DType::f32, m.r), input(context, c, r, dropped), m.da, DType::f32, c.in};
      to_a.accumulate = true;
      product(context, c, to_a);
    }
    if (!dx) continue;
    Gemm down{r.rows, c.in, m.r, matrix(dh, DType::f32, m.r), matrix(m.a, DType::f32, c.in), dx + r.row * c.in, DType::f32, c.in};
    if (drops(r)) {
      float* masked = dx_rows.as<float>(r.rows * c.in);
      down.c = masked;
      product(context, c, down);
      drop(context, masked, c, r);
      context.kernels.axpy(dx + r.row * c.in, masked, 1.f, r.rows * c.in);
    } else {
      down.accumulate = true;
      product(context, c, down);
    }
  }
}

}  // namespace pluralign
