#include "placed.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace pluralign {

void PlacedPlan::lay_out(Plan p, std::vector<device::SampleRow> draws, bool standing) {
  plan_ = std::move(p);
  draws_ = std::move(draws);
  nodes_.clear(), spans_.clear(), runs_.clear(), tree_starts_.clear(), tree_nodes_.clear();
  for (const PlanSegment& s : plan.segments) {
    nodes_.push_back({s.row, s.rows, s.prefix, int64_t(spans_.size()), int64_t(s.path.size())});
    for (const PathSpan& span : s.path) spans_.push_back({span.row, span.rows});
  }
  for (const AdapterRun& r : plan.runs) runs_.push_back({r.row, r.rows, r.adapter, 0});
  if (standing) runs_.resize(size_t(plan.rows), device::PlanRun{plan.rows, 0, -1, 0});
  for (const std::vector<int>& tree : plan.trees) {
    tree_starts_.push_back(int32_t(tree_nodes_.size()));
    tree_nodes_.insert(tree_nodes_.end(), tree.begin(), tree.end());
  }
  tree_starts_.push_back(int32_t(tree_nodes_.size()));
  arrays_ = {plan.rows, int64_t(nodes_.size()), int64_t(spans_.size()), int64_t(plan.trees.size()), int64_t(runs_.size()), plan.readouts, plan.longest,
             plan.tokens.data(), plan.positions.data(), plan.row_keys.data(), nodes_.data(), spans_.data(), tree_starts_.data(), tree_nodes_.data(), runs_.data(),
             plan.read_rows.data(), plan.targets.data(), draws_.empty() ? nullptr : draws_.data(), standing};
}

PlacedPlan::PlacedPlan(const Device& device, Plan p) : device_(device) {
  lay_out(std::move(p), {}, false);
  handle_ = device_.make_plan(arrays_);
}

PlacedPlan::PlacedPlan(const Device& device, Plan p, std::vector<device::SampleRow> draws) : device_(device) {
  lay_out(std::move(p), std::move(draws), true);
  handle_ = device_.make_plan(arrays_);
}

void PlacedPlan::renew(Plan p, std::vector<device::SampleRow> draws) {
  lay_out(std::move(p), std::move(draws), true);
  device_.renew_plan(handle_, arrays_);
}

PlacedBank::PlacedBank(const Device& device, const Bank& bank, float* gradients) : device_(device), bank_(bank) {
  if (device.on_cpu()) {
    parameters_ = bank.parameters();
    gradients_ = gradients ? gradients : bank.gradients();
  } else {
    parameters_ = parameters_buffer_.as<float>(device, bank.size());
    gradients_ = gradients_buffer_.as<float>(device, bank.size());
  }
  modules_ = host_modules_ = bank.modules().data();
  for (int a = 0; a < bank.adapters(); ++a) {
    const int head = bank.reward_head(a);
    own_heads_.push_back(head < 0 ? nullptr : values(head));
    own_dheads_.push_back(head < 0 ? nullptr : gradient(head));
  }
  heads_ = own_heads_.data();
  dheads_ = own_dheads_.data();
  if (at_home()) return;
  const auto move = [&](auto* from, auto* base, auto* to) { return from ? to + (from - base) : nullptr; };
  for (LoraModule m : bank.modules()) {
    m.a = move(m.a, bank.parameters(), parameters_);
    m.b = move(m.b, bank.parameters(), parameters_);
    m.core = move(m.core, bank.parameters(), parameters_);
    m.da = move(m.da, bank.gradients(), gradients_);
    m.db = move(m.db, bank.gradients(), gradients_);
    m.dcore = move(m.dcore, bank.gradients(), gradients_);
    moved_modules_.push_back(m);
  }
  modules_ = host_modules_ = moved_modules_.data();
  if (device.on_cpu()) return;
  auto* on_device = modules_buffer_.as<LoraModule>(device, int64_t(moved_modules_.size()));
  device.upload(on_device, moved_modules_.data(), moved_modules_.size() * sizeof(LoraModule));
  modules_ = on_device;
  const size_t n = own_heads_.size();
  auto* heads = heads_buffer_.as<float*>(device, int64_t(2 * n));
  device.upload(heads, own_heads_.data(), n * sizeof(float*));
  device.upload(heads + n, own_dheads_.data(), n * sizeof(float*));
  heads_ = heads;
  dheads_ = heads + n;
}

// Of the flat buffer, ascending, neighbours joined.
std::vector<PlacedBank::Stretch> PlacedBank::stretches(const std::vector<AdapterRun>& runs) const {
  std::vector<int> wanted;
  for (const auto& [name, factor] : bank_.weights()) wanted.push_back(factor);
  std::vector<int> adapters;
  for (const AdapterRun& r : runs)
    if (r.adapter >= 0) adapters.push_back(r.adapter);
  std::sort(adapters.begin(), adapters.end());
  adapters.erase(std::unique(adapters.begin(), adapters.end()), adapters.end());
  for (int a : adapters) {
    if (bank_.reward_head(a) >= 0) wanted.push_back(bank_.reward_head(a));
    for (const ModuleSpec& s : bank_.specs(a))
      for (int factor : {s.a, s.b, s.core})
        if (factor >= 0) wanted.push_back(factor);
  }
  std::vector<Stretch> all, joined;
  for (int f : wanted) all.push_back({bank_.factor(f).offset, bank_.factor(f).offset + bank_.factor(f).rows * bank_.factor(f).cols});
  std::sort(all.begin(), all.end(), [](const Stretch& a, const Stretch& b) { return a.begin < b.begin; });
  for (const Stretch& s : all) {
    if (joined.empty() || s.begin > joined.back().end) joined.push_back(s);
    else joined.back().end = std::max(joined.back().end, s.end);
  }
  return joined;
}

void PlacedBank::bring(const std::vector<AdapterRun>& runs) {
  if (device_.on_cpu() || took_over_) return;
  for (const Stretch& s : stretches(runs)) device_.upload(parameters_ + s.begin, bank_.parameters() + s.begin, size_t(s.end - s.begin) * 4);
}

void PlacedBank::clear_gradients(const std::vector<AdapterRun>& runs) {
  if (at_home() || took_over_) return;
  for (const Stretch& s : stretches(runs)) {
    const size_t bytes = size_t(s.end - s.begin) * 4;
    // On the CPU a share's own, perhaps from within a region of the pool, which must not be entered again.
    if (device_.on_cpu()) std::memset(gradients_ + s.begin, 0, bytes);
    else device_.zero(gradients_ + s.begin, bytes);
  }
}

void PlacedBank::send_gradients(const std::vector<AdapterRun>& runs) {
  if (at_home() || took_over_) return;
  for (const Stretch& s : stretches(runs)) {
    const int64_t n = s.end - s.begin;
    const float* from = gradients_ + s.begin;
    if (!device_.on_cpu()) {
      arriving_.resize(size_t(n));
      device_.fetch(arriving_.data(), from, size_t(n) * 4);
      from = arriving_.data();
    }
    float* to = bank_.gradients() + s.begin;
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  }
}

void PlacedBank::take_over(const float* m, const float* v) {
  if (device_.on_cpu()) throw_error("BAD_ARGUMENT", "on the CPU a bank is at home");
  const size_t bytes = size_t(bank_.size()) * 4;
  device_.upload(parameters_, bank_.parameters(), bytes);
  device_.zero(gradients_, bytes);
  for (const auto& [buffer, from] : {std::pair{&first_moment_, m}, {&second_moment_, v}}) {
    float* to = buffer->as<float>(device_, bank_.size());
    if (from) device_.upload(to, from, bytes);
    else device_.zero(to, bytes);
  }
  took_over_ = true;
}

void PlacedBank::send_home(float* m, float* v) {
  if (!took_over_) throw_error("BAD_ARGUMENT", "the bank is at home");
  const size_t bytes = size_t(bank_.size()) * 4;
  device_.fetch(bank_.parameters(), parameters_, bytes);
  device_.fetch(m, first_moment_.data(), bytes);
  device_.fetch(v, second_moment_.data(), bytes);
  took_over_ = false;
}

void PlacedBank::clear(const std::vector<int64_t>& spans) {
  if (!took_over_) throw_error("BAD_ARGUMENT", "the bank is at home");
  for (size_t i = 0, next = 0; i < spans.size(); i = next) {
    for (next = i + 2; next < spans.size() && spans[next] == spans[next - 1];) next += 2;
    device_.zero(gradients_ + spans[i], size_t(spans[next - 1] - spans[i]) * 4);
  }
}

std::vector<double> PlacedBank::step(const Step& s) {
  if (!took_over_) throw_error("BAD_ARGUMENT", "the bank is at home");
  const auto n = int64_t(s.steps.size());
  std::vector<double> norms(s.steps.size());
  double* sums = sums_.as<double>(device_, n);
  device_.run(&device::Table::squared_norms, device::SquaredNormsCall{gradients_, n, s.spans.data(), sums});
  device_.fetch(norms.data(), sums, norms.size() * sizeof(double));
  double total = 0;
  for (double& x : norms) {
    total += x;
    x = std::sqrt(x);
  }
  if (!std::isfinite(total)) return norms;
  const double scale = std::isfinite(s.max_norm) ? std::min(1.0, s.max_norm / (std::sqrt(total) + 1e-6)) : 1;
  device_.run(&device::Table::adamw, device::AdamWCall{parameters_, gradients_, first_moment_.as<float>(device_, bank_.size()), second_moment_.as<float>(device_, bank_.size()), n,
                                                      s.spans.data(), s.steps.data(), s.decay.data(), s.learning_rate, s.beta1, s.beta2, s.eps, s.weight_decay, scale});
  return norms;
}

}  // namespace pluralign
