// Linear layers in bfloat16 with their low-rank parts as further terms of the same product: nothing of y is read back to add
// to it, and a row's sum has one order whatever adapters stand beside it.
#pragma once
#include "linear.h"

namespace pluralign {

inline bool fuses(const Context& context, const LinearCall& call) { return context.kernels.multiply_bf16 && call.storage == kBf16; }

// Of a range alone, so that no range decides how another is computed: dropout needs an input of its own, and cores stand
// between the factors.
inline bool fuses(const LoraRange& range) { return range.module->core_rows == 0 && (range.module->dropout == 0.f || range.stream == 0); }

// The ranges that are left to lora_forward and lora_backward; good until the next call.
const std::vector<LoraRange>& unfused(Context& context, const std::vector<LoraRange>& ranges);

void fused_forward(Context& context, const LinearCall& call, bool residual);
void fused_backward(Context& context, const LinearCall& call, float* dx);

}  // namespace pluralign
