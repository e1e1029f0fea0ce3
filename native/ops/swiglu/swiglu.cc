#include "swiglu.h"

namespace pluralign {

void swiglu(Context& context, int storage, void* a, const void* gate_up, int64_t rows, int64_t width) {
  const size_t element = storage == kF32 ? 4 : 2;
  context.pool.ranges(rows, 8, [&](int64_t r0, int64_t r1, int) {
    context.kernels.swiglu[storage](static_cast<char*>(a) + size_t(r0 * width) * element,
                                    static_cast<const char*>(gate_up) + size_t(r0 * 2 * width) * element, r1 - r0, width);
  });
}

void swiglu_backward(Context& context, int storage, float* d_gate_up, const float* da, const void* gate_up, int64_t rows, int64_t width) {
  const size_t element = storage == kF32 ? 4 : 2;
  context.pool.ranges(rows, 8, [&](int64_t r0, int64_t r1, int) {
    context.kernels.swiglu_backward[storage](d_gate_up + r0 * 2 * width, da + r0 * width,
                                             static_cast<const char*>(gate_up) + size_t(r0 * 2 * width) * element, r1 - r0, width);
  });
}

}  // namespace pluralign
