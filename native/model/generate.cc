#include <algorithm>

#include "base/status.h"
#include "model.h"
#include "ops/sample/sample.h"

namespace pluralign {
namespace {

// A plan of rows that continue sequences: one segment each, read at its last row.
Plan continuation(const std::vector<std::vector<int32_t>>& fresh, const std::vector<int64_t>& starts, int adapter) {
  Plan plan;
  for (size_t i = 0; i < fresh.size(); ++i) {
    const int64_t rows = int64_t(fresh[i].size());
    plan.segments.push_back({plan.rows, rows, starts[i], {{plan.rows, rows}}});
    plan.trees.push_back({int(i)});
    for (int64_t t = 0; t < rows; ++t) {
      plan.tokens.push_back(fresh[i][size_t(t)]);
      plan.positions.push_back(int32_t(starts[i] + t));
      plan.row_keys.push_back(0);
    }
    plan.rows += rows;
    plan.read_rows.push_back(int32_t(plan.rows - 1));
    plan.targets.push_back(0);
  }
  plan.readouts = int64_t(fresh.size());
  plan.runs.push_back({0, plan.rows, adapter});
  return plan;
}

}  // namespace

std::vector<std::vector<int32_t>> Model::generate(Context& context, const std::vector<std::vector<int32_t>>& prompts, const Bank* bank,
                                                  const GenerateRequest& request, const Cancel& cancel) {
  const size_t count = prompts.size();
  std::vector<std::vector<int32_t>> out(count);
  if (count == 0 || request.max_new_tokens <= 0) return out;
  if (request.seeds.size() != count) throw_error("BAD_ARGUMENT", "%zu prompts need as many seeds, found %zu", count, request.seeds.size());
  if (request.adapter >= (bank ? bank->adapters() : 0)) throw_error("BAD_ARGUMENT", "no adapter %d", request.adapter);
  int64_t longest = 0;
  for (const auto& p : prompts) {
    if (p.empty()) throw_error("BAD_ARGUMENT", "a prompt has no token");
    for (int32_t t : p)
      if (t < 0 || t >= config_.vocabulary) throw_error("BAD_ARGUMENT", "token id %d is outside the model's vocabulary of %lld", t, (long long)config_.vocabulary);
    longest = std::max<int64_t>(longest, int64_t(p.size()));
  }
  check(bank);
  if (!bank || bank->weights().empty()) weights_->pack(context.kernels, cancel);
  const Network network = weights_->resolve(bank);
  KvCache cache(config_, int64_t(count), longest + request.max_new_tokens);
  const SampleOptions options{request.temperature, request.top_k, request.top_p};

  std::vector<int32_t> slots, scratch;
  std::vector<std::vector<int32_t>> fresh = prompts;
  std::vector<int64_t> starts(count, 0);
  for (size_t i = 0; i < count; ++i) slots.push_back(int32_t(i));
  std::vector<float> logits;
  for (int64_t step = 0; step < request.max_new_tokens && !slots.empty(); ++step) {
    cancel.check();
    const Plan plan = continuation(fresh, starts, request.adapter);
    Pass pass{context, network, bank, plan, 0, cancel};
    pass.cache = &cache;
    pass.slots = slots.data();
    free_.forward(pass, false, false);
    const int64_t n = int64_t(slots.size()), vocabulary = config_.vocabulary;
    logits.resize(size_t(n * vocabulary));
    Gemm g{n, vocabulary, config_.hidden, matrix(free_.hidden(), free_.type(), config_.hidden),
           transposed(network.head.data, network.head.type, config_.hidden), logits.data(), DType::f32, vocabulary};
    g.packed = network.head.packed;
    g.bfloat16 = free_.storage() == kBf16;
    gemm(context, g);

    std::vector<int32_t> next_slots;
    std::vector<std::vector<int32_t>> next_fresh;
    std::vector<int64_t> next_starts;
    for (size_t i = 0; i < slots.size(); ++i) {
      const size_t slot = size_t(slots[i]);
      const int32_t token = sample(logits.data() + int64_t(i) * vocabulary, vocabulary, options, request.seeds[slot], uint32_t(step), scratch);
      out[slot].push_back(token);
      if (std::find(request.stop_tokens.begin(), request.stop_tokens.end(), token) != request.stop_tokens.end()) continue;
      next_slots.push_back(slots[i]);
      next_fresh.push_back({token});
      next_starts.push_back(starts[i] + int64_t(fresh[i].size()));
    }
    slots = std::move(next_slots);
    fresh = std::move(next_fresh);
    starts = std::move(next_starts);
  }
  return out;
}

}  // namespace pluralign
