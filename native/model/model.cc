#include "model.h"

#include <cstring>

#include "base/status.h"

namespace pluralign {

// The head of the adapter that answers for a readout's row.
const float* Model::reward_head(const Bank* bank, const Plan& plan, int64_t readout, int* factor) const {
  for (const AdapterRun& run : plan.runs) {
    const int32_t row = plan.read_rows[size_t(readout)];
    if (row < run.row || row >= run.row + run.rows) continue;
    const int head = bank && run.adapter >= 0 ? bank->reward_head(run.adapter) : -1;
    if (head < 0) throw_error("BAD_ARGUMENT", "rewards were asked of an adapter that has no reward head");
    *factor = head;
    return bank->values(head);
  }
  throw_error("BAD_ARGUMENT", "a readout lies outside the pack");
}

void Model::check(const Bank* bank) {
  if (!bank || bank->id() == checked_) return;
  bank->check(config_);
  checked_ = bank->id();
}

Head Model::head_of(const Network& network, const Plan& plan, const Decoder& decoder, float temperature) const {
  return {plan.readouts, config_.hidden, config_.vocabulary, matrix(decoder.hidden(), decoder.type(), config_.hidden),
          network.head.data, network.head.type, plan.targets.data(), 1 / temperature, network.head.packed};
}

void Model::read(Context& context, const Network& network, const Bank* bank, const Plan& plan, const Decoder& decoder, const ScoreRequest& request,
                 float* out, Partition* partition, float* squares) const {
  if (!request.reward) return head_logps(context, head_of(network, plan, decoder, request.temperature), out, partition, squares);
  for (int64_t i = 0; i < plan.readouts; ++i) {
    int factor;
    const float* w = reward_head(bank, plan, i, &factor);
    double sum = 0;
    for (int64_t c = 0; c < config_.hidden; ++c) {
      const int64_t at = i * config_.hidden + c;
      sum += double(w[c]) * (decoder.storage() == kF32 ? static_cast<const float*>(decoder.hidden())[at] : to_float(static_cast<const bf16*>(decoder.hidden())[at]));
    }
    out[i] = float(sum);
  }
}

void Model::score(Context& context, const Pack& pack, const Bank* bank, const ScoreRequest& request, float* out, float* squares, const Cancel& cancel) {
  Plan with_grad, without;
  make_plans(pack, config_.vocabulary, bank ? bank->adapters() : 0, !request.reward, with_grad, without);
  // A pack without gradients (a reference, say) may be scored between a score with keep and its backward.
  if (request.keep || with_grad.rows > 0) ready_ = false;
  check(bank);
  weights_->pack_where_faster(context, cancel);
  const Network network = weights_->resolve(bank);
  std::vector<Partition> partition(static_cast<size_t>(with_grad.readouts)), other(static_cast<size_t>(without.readouts));
  for (const bool grad : {true, false}) {
    const Plan& plan = grad ? with_grad : without;
    if (plan.rows == 0) continue;
    Decoder& decoder = grad ? kept_ : free_;
    const Pass pass{context, network, bank, plan, request.dropout_seed, cancel};
    decoder.forward(pass, grad && request.keep, request.checkpoint);
    read(context, network, bank, plan, decoder, request, out + plan.first_readout, grad ? partition.data() : other.data(),
         squares ? squares + plan.first_readout : nullptr);
  }
  if (!request.keep) return;
  plan_ = std::move(with_grad);
  request_ = request;
  partition_ = std::move(partition);
  readouts_ = pack.readouts;
  bank_ = bank ? bank->id() : 0;
  ready_ = true;
}

void Model::hidden(Context& context, const Pack& pack, const Bank* bank, float* out, const Cancel& cancel) {
  Plan with_grad, without;
  make_plans(pack, config_.vocabulary, bank ? bank->adapters() : 0, false, with_grad, without);
  if (with_grad.rows > 0) throw_error("BAD_ARGUMENT", "hidden rows are read without a gradient: needsGrad must be 0");
  check(bank);
  weights_->pack_where_faster(context, cancel);
  const Network network = weights_->resolve(bank);
  if (without.rows == 0) return;
  free_.forward({context, network, bank, without, 0, cancel}, false, false);
  for (int64_t i = 0; i < without.readouts * config_.hidden; ++i)
    out[i] = free_.storage() == kF32 ? static_cast<const float*>(free_.hidden())[i] : to_float(static_cast<const bf16*>(free_.hidden())[i]);
}

void Model::backward(Context& context, const Bank& bank, const float* gradient, int64_t count, const Cancel& cancel) {
  if (!ready_) throw_error("BAD_ARGUMENT", "backward needs a score with keep before it, once");
  if (count != readouts_) throw_error("BAD_ARGUMENT", "gradient must have one element for each of %lld readouts, found %lld", (long long)readouts_, (long long)count);
  if (bank.id() != bank_) throw_error("BAD_ARGUMENT", "backward needs the bank that score had");
  ready_ = false;
  const Network network = weights_->resolve(&bank);
  const Plan& plan = plan_;
  const int64_t d = config_.hidden;
  std::vector<float> dhidden(size_t(plan.readouts * d), 0.f);
  const float* g = gradient + plan.first_readout;
  if (request_.reward) {
    for (int64_t i = 0; i < plan.readouts; ++i) {
      int factor;
      const float* w = reward_head(&bank, plan, i, &factor);
      float* dw = bank.gradient(factor);
      for (int64_t c = 0; c < d; ++c) {
        const int64_t at = i * d + c;
        const float h = kept_.storage() == kF32 ? static_cast<const float*>(kept_.hidden())[at] : to_float(static_cast<const bf16*>(kept_.hidden())[at]);
        dhidden[size_t(at)] = g[i] * w[c];
        dw[c] += g[i] * h;
      }
    }
  } else {
    head_backward(context, head_of(network, plan, kept_, request_.temperature), partition_.data(), g, dhidden.data(), network.head.grad);
  }
  kept_.backward({context, network, &bank, plan, request_.dropout_seed, cancel}, dhidden.data());
}

}  // namespace pluralign
