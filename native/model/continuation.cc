#include "continuation.h"

#include <algorithm>

#include "model.h"

namespace pluralign {

std::vector<size_t> by_adapter(const std::vector<Continuation>& parts) {
  std::vector<size_t> order(parts.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return parts[a].adapter < parts[b].adapter; });
  return order;
}

Plan plan_of(const std::vector<Continuation>& parts, const std::vector<bool>& read, const KvCache& cache) {
  Plan plan;
  for (size_t i = 0; i < parts.size(); ++i) {
    const Continuation& c = parts[i];
    plan.segments.push_back({plan.rows, c.rows, c.prefix, {}});
    if (cache.on_device()) {
      plan.segments.back().path = {{cache.on_device()->row(c.slot), c.prefix + c.rows}};
      plan.trees.push_back({int(i)});
    }
    for (int64_t t = 0; t < c.rows; ++t) plan.positions.push_back(int32_t(c.prefix + t));
    plan.tokens.insert(plan.tokens.end(), c.tokens, c.tokens + c.rows);
    if (!plan.runs.empty() && plan.runs.back().adapter == c.adapter) plan.runs.back().rows += c.rows;
    else plan.runs.push_back({plan.rows, c.rows, c.adapter});
    plan.rows += c.rows;
    if (read[i]) plan.read_rows.push_back(int32_t(plan.rows - 1));
  }
  plan.readouts = int64_t(plan.read_rows.size());
  plan.row_keys.assign(size_t(plan.rows), 0);
  plan.targets.assign(size_t(plan.readouts), 0);
  return plan;
}

namespace {

constexpr int64_t kPassRows = 1024, kDevicePassRows = 8192;  // bound the activations of long or many prompts
// A pass of fewer multiplications is done sooner by one thread than by several that meet in every product.
constexpr double kSerialProducts = 1e6;

// Elsewhere than on the CPU, where it is a linear layer that adds to float32 zeros.
void head_on_device(const Device& device, const Network& network, const PlacedPlan& placed, const Decoder& decoder, int64_t vocabulary, float* out) {
  const int64_t rows = placed.plan.readouts;
  device.zero(out, size_t(rows * vocabulary) * 4);
  device::LinearCall c{placed.handle(), rows, network.head.cols, 0, decoder.hidden(), decoder.storage(), 1, 1, 0, {}, nullptr};
  c.part[0].out = c.part[0].ldy = vocabulary;
  c.part[0].weight = network.head.view();
  c.part[0].y = out;
  device.run(&device::Table::linear, c);
}

// Some parts, by adapter, in passes of bounded rows; logits of each part's last row, one behind the other.
struct Run {
  const ModelConfig& config;
  const Network& network;
  const PlacedBank* bank;
  const PackedAdapters* packed;
  const KvCache& cache;
  const Cancel& cancel;

  void operator()(const Device& device, Decoder& decoder, const std::vector<Continuation>& parts, float* logits) const {
    const int64_t most = device.on_cpu() ? kPassRows : kDevicePassRows;
    int64_t done = 0;  // rows of the part in hand
    for (size_t next = 0; next < parts.size();) {
      cancel.check();
      std::vector<Continuation> some;
      std::vector<bool> read;
      std::vector<int> slots;
      for (int64_t rows = 0; next < parts.size() && rows < most;) {
        Continuation c = parts[next];
        c.prefix += done;
        c.tokens += done;
        c.rows = std::min(c.rows - done, most - rows);
        rows += c.rows;
        done += c.rows;
        some.push_back(c);
        slots.push_back(c.slot);
        read.push_back(done == parts[next].rows);
        if (!read.back()) break;
        done = 0;
        ++next;
      }
      const PlacedPlan placed(device, plan_of(some, read, cache));
      const Plan& plan = placed.plan;
      Pass pass{device, network, bank, placed, 0, cancel};
      pass.packed = packed;
      pass.cache = &cache;
      pass.slots = slots.data();
      decoder.forward(pass, false, false);
      if (device.on_cpu()) multiply_head(device.cpu("generation"), decoder, plan.readouts, logits);
      else head_on_device(device, network, placed, decoder, config.vocabulary, logits);
      logits += plan.readouts * config.vocabulary;
    }
  }

  void multiply_head(Context& context, const Decoder& decoder, int64_t rows, float* out) const {
    Gemm g{rows, config.vocabulary, config.hidden, matrix(decoder.hidden(), decoder.type(), config.hidden),
           transposed(network.head.data, network.head.type, config.hidden), out, DType::f32, config.vocabulary};
    g.packed = network.head.packed;
    g.bfloat16 = decoder.storage() == kBf16;
    gemm(context, g);
  }
};

}  // namespace

std::vector<const float*> Model::next_logits(const Device& device, const Network& network, const Bank* bank, const PackedAdapters* packed, const KvCache& cache,
                                             const std::vector<Continuation>& parts, Buffer& logits, const Cancel& cancel, Lane* lane) {
  const std::vector<size_t> order = by_adapter(parts);
  const int64_t count = int64_t(parts.size()) * config_.vocabulary;
  float* out = device.on_cpu() ? logits.as<float>(count) : device_logits_.as<float>(device, count);
  std::vector<const float*> read(parts.size());
  std::vector<Continuation> sorted;
  int64_t rows = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    sorted.push_back(parts[order[i]]);
    read[order[i]] = out + int64_t(i) * config_.vocabulary;
    rows += sorted.back().rows;
  }
  const Run run{config_, network, bank ? &bank->on(device) : nullptr, packed, cache, cancel};
  const int64_t lanes = lane || !device.on_cpu() ? 0 : lanes_for(device.cpu("generation"), int64_t(parts.size()), rows);
  if (lanes == 0) {
    if (lane) run(lane->context, lane->decoder, sorted, out);
    else run(device, free_, sorted, out);
    return read;
  }
  Context& context = device.cpu("generation");
  // Parts are cut where each lane has its share of the rows.
  make_lanes(context, lanes);
  std::vector<std::vector<Continuation>> share(static_cast<size_t>(lanes));
  int64_t before = 0;
  for (const Continuation& c : sorted) {
    share[size_t(std::min(lanes - 1, (before + c.rows / 2) * lanes / rows))].push_back(c);
    before += c.rows;
  }
  std::vector<float*> at;
  for (const auto& some : share) {
    at.push_back(out);
    out += int64_t(some.size()) * config_.vocabulary;
  }
  context.pool.run(lanes, [&](int64_t i, int thread) {
    Lane& lane = *lanes_[size_t(thread)];
    run(lane.context, lane.decoder, share[size_t(i)], at[size_t(i)]);
  });
  return read;
}

void Model::reserve_positions(const Device& device, int64_t positions) { free_.reserve_positions(device, positions); }

void Model::queue_step(const Device& device, const Network& network, const PlacedBank* bank, const KvCache& cache, const PlacedPlan& placed, float* logits, int32_t* drawn,
                       const Cancel& cancel) {
  Pass pass{device, network, bank, placed, 0, cancel};
  pass.cache = &cache;
  free_.forward(pass, false, false);
  head_on_device(device, network, placed, free_, config_.vocabulary, logits);
  const int64_t rows = placed.plan.readouts;
  device.run(&device::Table::sample, device::SampleCall{rows, config_.vocabulary, nullptr, drawn, reinterpret_cast<float*>(drawn + rows), placed.handle()});
}

int64_t Model::lanes_for(const Context& context, int64_t parts, int64_t rows) const {
  const int64_t threads = context.pool.size();
  // Where each thread may read all weights, sequences are shared out, not every product's columns.
  if (threads == 1 || !weights_->in_cache()) return 0;
  if (double(weights_->elements()) * double(rows) < kSerialProducts) return 1;
  return parts < threads ? 0 : threads;
}

void Model::make_lanes(const Context& context, int64_t count) {
  if (!lanes_.empty() && &lanes_[0]->context.kernels != &context.kernels) lanes_.clear();
  while (int64_t(lanes_.size()) < count) lanes_.push_back(std::make_unique<Lane>(context.kernels, config_, free_.storage() == kBf16));
}

int64_t Model::activation_bytes() const {
  int64_t total = free_.activation_bytes();
  for (const auto& share : kept_) total += share->decoder.activation_bytes();
  for (const auto& lane : lanes_) total += lane->decoder.activation_bytes();
  return total;
}

}  // namespace pluralign
