#include "model.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/status.h"

namespace pluralign {

using device::Table;

namespace {
constexpr int64_t kShareRows = 160;           // enough for products at full speed, few enough for a second-level cache
constexpr int64_t kApart = int64_t(1) << 22;  // floats of gradients that shares may hold together
}  // namespace

std::vector<Plan> Model::shares(const Device& device, const Bank* bank, Plan side) const {
  std::vector<Plan> out;
  if (device.on_cpu() && weights_->in_cache()) {
    // Not by what needs a gradient: a row is scored alike on either side.
    const int64_t most = bank ? kApart / std::max<int64_t>(1, bank->size()) : std::max<int64_t>(2, side.rows);
    const int64_t rows = most > 1 ? std::max(kShareRows, (side.rows + most - 1) / most) : 0;
    if (rows > 0) return cut_plan(std::move(side), rows);
  }
  out.push_back(std::move(side));
  return out;
}

void Model::each_share(const Device& device, const std::vector<int64_t>& rows, const std::function<void(const Device&, Decoder&, size_t)>& body) {
  const size_t count = rows.size();
  // The largest first, so that threads end together.
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return rows[a] > rows[b]; });
  if (count > 1 && device.on_cpu() && weights_->in_cache()) {
    Context& context = device.cpu("a share");
    if (const int64_t threads = context.pool.size(); threads > 1 && int64_t(count) >= threads) {
      make_lanes(context, threads);
      return context.pool.run(int64_t(count), [&](int64_t i, int thread) {
        Lane& lane = *lanes_[size_t(thread)];
        body(Device(lane.context), lane.decoder, order[size_t(i)]);
      });
    }
  }
  for (size_t i : order) body(device, free_, i);
}

void Model::check(const Bank* bank) {
  if (!bank || bank->id() == checked_) return;
  bank->check(config_);
  checked_ = bank->id();
}

device::HeadCall Model::head_call(const Pass& pass, const Decoder& decoder, float temperature, const Readouts& r) const {
  const int64_t n = pass.plan.plan.readouts;
  device::HeadCall c{};
  c.plan = pass.plan.handle();
  c.hidden = {decoder.hidden(), decoder.type(), 0, n, config_.hidden, config_.hidden};
  c.weight = pass.network.head.view();
  c.packed = pass.network.head.packed;
  c.scale = 1 / temperature;
  c.logps = static_cast<float*>(r.values.data());
  c.partition = static_cast<double*>(r.partition.data());
  c.squares = static_cast<float*>(r.squares.data());
  c.dlogps = static_cast<const float*>(r.gradient.data());
  c.dhidden = static_cast<float*>(r.dhidden.data());
  c.dweight = pass.network.head.grad;
  return c;
}

device::RewardCall Model::reward_call(const Pass& pass, const Decoder& decoder, const Readouts& r) const {
  const int64_t n = pass.plan.plan.readouts;
  return {pass.plan.handle(), {decoder.hidden(), decoder.type(), 0, n, config_.hidden, config_.hidden}, pass.bank->heads(), pass.bank->dheads(),
          static_cast<const int32_t*>(r.adapters.data()), static_cast<float*>(r.values.data()), static_cast<const float*>(r.gradient.data()),
          static_cast<float*>(r.dhidden.data()), pass.bank->bank().adapters()};
}

// The adapter of each readout's row; every one must have a reward head.
static std::vector<int32_t> readout_adapters(const PlacedBank* bank, const Plan& plan) {
  std::vector<int32_t> out;
  size_t run = 0;
  for (int32_t row : plan.read_rows) {  // ascending
    while (row >= plan.runs[run].row + plan.runs[run].rows) ++run;
    const int adapter = plan.runs[run].adapter;
    if (!bank || adapter < 0 || bank->bank().reward_head(adapter) < 0) throw_error("BAD_ARGUMENT", "rewards were asked of an adapter that has no reward head");
    out.push_back(adapter);
  }
  return out;
}

void Model::read(const Pass& pass, const Decoder& decoder, const ScoreRequest& request, bool keep, Readouts& r, float* out, float* squares) {
  const Device& on = pass.device;
  const int64_t n = pass.plan.plan.readouts;
  r.values.as<float>(on, n);
  if (request.reward) {
    const std::vector<int32_t> adapters = readout_adapters(pass.bank, pass.plan.plan);
    if (n == 0) return;
    on.upload(r.adapters.as<int32_t>(on, n), adapters.data(), size_t(n) * 4);
    on.run(&Table::reward, reward_call(pass, decoder, r));
  } else {
    r.partition.as<double>(on, 2 * n);
    if (squares) r.squares.as<float>(on, n);
    else r.squares.release();
    device::HeadCall call = head_call(pass, decoder, request.temperature, r);
    call.dhidden = keep && !call.dweight ? r.dhidden.as<float>(on, n * config_.hidden) : nullptr;
    on.run(&Table::head, call);
    if (squares) on.fetch(squares, r.squares.data(), size_t(n) * 4);
  }
  on.fetch(out, r.values.data(), size_t(n) * 4);
}

void Model::score(const Device& device, const Pack& pack, const Bank* bank, const ScoreRequest& request, float* out, float* squares, const Cancel& cancel) {
  Plan sides[2];
  make_plans(pack, config_.vocabulary, bank ? bank->adapters() : 0, !request.reward, sides[0], sides[1]);
  // A pack without gradients (a reference, say) may be scored between a score with keep and its backward.
  if (request.keep || sides[0].rows > 0) {
    ready_ = false;
    parts_ = 0;
  }
  check(bank);
  weights_->settle(device, cancel);
  PlacedBank* placed = bank ? &bank->on(device) : nullptr;
  const Network network = weights_->resolve(device, placed);
  // Shares of both sides, those that need a gradient first.
  std::vector<Plan> plans;
  std::vector<int64_t> rows;
  size_t kept = 0;
  for (const bool grad : {true, false}) {
    Plan& side = sides[grad ? 0 : 1];
    if (side.rows == 0) continue;
    if (placed) placed->bring(side.runs);
    for (Plan& plan : shares(device, bank, std::move(side))) plans.push_back(std::move(plan));
    if (grad) kept = plans.size();
  }
  for (const Plan& plan : plans) rows.push_back(plan.rows);
  while (kept_.size() < kept) kept_.push_back(std::make_unique<KeptShare>(config_, free_.storage() == kBf16));
  free_readouts_.resize(std::max(free_readouts_.size(), plans.size() - kept));
  if (kept > 0) parts_ = kept;
  each_share(device, rows, [&](const Device& on, Decoder& free, size_t i) {
    const bool grad = i < kept;
    auto plan = std::make_unique<PlacedPlan>(on, std::move(plans[i]));
    Decoder& decoder = grad ? kept_[i]->decoder : free;
    const Pass pass{on, network, placed, *plan, request.dropout_seed, cancel};
    decoder.forward(pass, grad && request.keep, request.checkpoint);
    const int64_t first = plan->plan.first_readout;
    read(pass, decoder, request, grad && request.keep, grad ? kept_[i]->readouts : free_readouts_[i - kept], out + first, squares ? squares + first : nullptr);
    if (grad) kept_[i]->plan = std::move(plan);
  });
  if (!request.keep) return;
  request_ = request;
  readouts_ = pack.readouts;
  bank_ = bank ? bank->id() : 0;
  ready_ = true;
}

void Model::hidden(const Device& device, const Pack& pack, const Bank* bank, float* out, const Cancel& cancel) {
  Plan with_grad, without;
  make_plans(pack, config_.vocabulary, bank ? bank->adapters() : 0, false, with_grad, without);
  if (with_grad.rows > 0) throw_error("BAD_ARGUMENT", "hidden rows are read without a gradient: needsGrad must be 0");
  check(bank);
  weights_->settle(device, cancel);
  PlacedBank* placed = bank ? &bank->on(device) : nullptr;
  const Network network = weights_->resolve(device, placed);
  if (without.rows == 0) return;
  if (placed) placed->bring(without.runs);
  const PlacedPlan plan(device, std::move(without));
  free_.forward({device, network, placed, plan, 0, cancel}, false, false);
  const int64_t n = plan.plan.readouts * config_.hidden;
  if (free_.storage() == kF32) return device.fetch(out, free_.hidden(), size_t(n) * 4);
  std::vector<bf16> rows(static_cast<size_t>(n));
  device.fetch(rows.data(), free_.hidden(), rows.size() * 2);
  for (int64_t i = 0; i < n; ++i) out[i] = to_float(rows[size_t(i)]);
}

void Model::backward(const Device& device, const Bank& bank, const float* gradient, int64_t count, const Cancel& cancel) {
  if (!ready_) throw_error("BAD_ARGUMENT", "backward needs a score with keep before it, once");
  if (count != readouts_) throw_error("BAD_ARGUMENT", "gradient must have one element for each of %lld readouts, found %lld", (long long)readouts_, (long long)count);
  if (bank.id() != bank_) throw_error("BAD_ARGUMENT", "backward needs the bank that score had");
  ready_ = false;
  const size_t parts = std::exchange(parts_, 0);
  if (parts == 0) return;
  PlacedBank& home = bank.on(device);
  const Network network = weights_->resolve(device, &home);
  std::vector<int64_t> rows;
  for (size_t i = 0; i < parts; ++i) rows.push_back(kept_[i]->plan->plan.rows);
  each_share(device, rows, [&](const Device& on, Decoder&, size_t i) {
    KeptShare& share = *kept_[i];
    const Plan& plan = share.plan->plan;
    PlacedBank& placed = parts == 1 ? home : share.bank_apart(on, bank);
    const Network own = network.trains_base && parts > 1 ? weights_->resolve(on, &placed) : network;
    const Pass pass{on, own, &placed, *share.plan, request_.dropout_seed, cancel};
    Readouts& r = share.readouts;
    on.upload(r.gradient.as<float>(on, plan.readouts), gradient + plan.first_readout, size_t(plan.readouts) * 4);
    float* dhidden = r.dhidden.as<float>(on, plan.readouts * config_.hidden);
    placed.clear_gradients(plan.runs);
    if (plan.readouts > 0) {
      if (request_.reward) on.run(&Table::reward_backward, reward_call(pass, share.decoder, r));
      else on.run(&Table::head_backward, head_call(pass, share.decoder, request_.temperature, r));
    }
    share.decoder.backward(pass, dhidden);
  });
  for (size_t i = 0; i < parts; ++i) {
    const std::unique_ptr<PlacedPlan> plan = std::move(kept_[i]->plan);
    (parts == 1 ? home : kept_[i]->bank_apart(device, bank)).send_gradients(plan->plan.runs);
  }
}

}  // namespace pluralign
