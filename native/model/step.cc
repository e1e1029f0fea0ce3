// Linear layers of a step of generation: the base's product and, over packed factors, the adapters'.
#include <algorithm>

#include "decoder.h"
#include "ops/linear/linear.h"

namespace pluralign {

void Decoder::step_linears(const Pass& pass, int64_t layer, int first, int last, const void* x, void* y, int64_t ldy, bool residual) {
  static const std::vector<LoraRange> none;
  Context& cpu = pass.device.cpu("generation");
  const int64_t in = target_in(config_, first);
  // What bfloat16 rounds once takes the adapters' part as one more term of the product; else it is added to y.
  const bool apart = storage_ == kBf16 && !residual;
  float* sums = apart ? addend_.as<float>(pass.rows() * ldy) : static_cast<float*>(y);

  LinearPart parts[device::kMostParts];
  int64_t column = 0;
  for (int t = first; t <= last; ++t) {
    const Linear& l = pass.network.layers[size_t(layer)].linear[t];
    LinearPart& p = parts[t - first];
    p = {target_out(config_, t), matrix(l.weight.data, l.weight.type, in), l.weight.packed, l.bias ? l.bias.floats() : nullptr, &none, nullptr};
    p.y = static_cast<char*>(y) + size_t(column) * (residual ? 4 : element());
    p.ldy = ldy;
    p.addend = apart ? sums + column : nullptr;
    p.ldadd = ldy;
    column += p.out;
  }
  steps_.clear();
  for (const AdapterRun& run : pass.plan.plan.runs) {
    column = 0;
    for (int t = first; t <= last; ++t) {
      const int64_t out = parts[t - first].out;
      float* to = sums + run.row * ldy + column;
      if (const StepModule* m = pass.packed->module(run.adapter, layer, t)) steps_.push_back({run.row, run.rows, m, out, to, ldy});
      else if (apart)
        for (int64_t r = 0; r < run.rows; ++r) std::fill_n(to + r * ldy, out, 0.f);
      column += out;
    }
  }
  const auto adapters = [&] { lora_step(cpu, storage_, x, in, steps_.data(), int64_t(steps_.size()), !apart); };
  if (apart) adapters();
  linear_forward(cpu, {pass.rows(), in, storage_, x, parts, last - first + 1, 0, nullptr}, residual);
  if (!apart) adapters();
}

}  // namespace pluralign
