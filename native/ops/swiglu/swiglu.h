// Gated activation of the Llama feed-forward block: a = silu(gate) · up, silu(x) = x / (1 + e^-x) (Shazeer 2020).
#pragma once
#include "ops/table.h"

namespace pluralign {

// gate_up [rows × 2 width]: gate in the first `width` columns, up in the rest; a [rows × width]; both in `storage`.
void swiglu(Context& context, int storage, void* a, const void* gate_up, int64_t rows, int64_t width);

// d_gate_up [rows × 2 width] float32 = gradient, given da [rows × width].
void swiglu_backward(Context& context, int storage, float* d_gate_up, const float* da, const void* gate_up, int64_t rows, int64_t width);

}  // namespace pluralign
