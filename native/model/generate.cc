#include "generate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <utility>

#include "base/status.h"

namespace pluralign {
namespace {
// Steps after which sequences are shared out anew, for some have ended; fewer where others wait for their place.
constexpr int64_t kStepsApart = 16, kStepsAwaited = 4;
}  // namespace

Network Model::prepare(const Device& device, const Bank* bank, const Cancel& cancel) {
  check(bank);
  if (!device.on_cpu()) weights_->settle(device, cancel);
  else if (!bank || bank->weights().empty()) weights_->pack(device.cpu("generation"), cancel);
  return weights_->resolve(device, bank ? &bank->on(device) : nullptr);
}

Generation::Generation(const Model& model, Context& host, const Device& device, Limits limits, std::vector<int32_t> stop_tokens)
    : config_(model.config()), host_(host), device_(device), cache_(config_, host.kernels, device, model.storage()), limits_(limits), stop_(std::move(stop_tokens)) {
  // The cache is held twice for a moment when it grows, and activations need room too.
  if (limits_.memory < 0) limits_.memory = device.on_cpu() ? INT64_MAX : device.memory().free * 2 / 5;
  cache_.limit(limits_.memory);
  if (!device.on_cpu()) standing_ = std::make_unique<StandingSteps>(device_);
}

void Generation::bring(const Bank* bank) {
  if (!bank || device_.on_cpu()) return;
  std::vector<AdapterRun> fresh;
  if (brought_.insert(-1).second) fresh.push_back({0, 0, -1});  // base weights that the bank trains
  for (const Sequence& s : active_)
    for (const auto& m : s.request.members)
      if (brought_.insert(m.adapter).second) fresh.push_back({0, 0, m.adapter});
  if (!fresh.empty()) bank->on(device_).bring(fresh);
}

void Generation::add(int64_t id, SequenceRequest request, int adapters) {
  const auto& prompt = request.prompt;
  if (prompt.empty()) throw_error("BAD_ARGUMENT", "a prompt has no token");
  for (int32_t t : prompt)
    if (t < 0 || t >= config_.vocabulary) throw_error("BAD_ARGUMENT", "token id %d is outside the model's vocabulary of %lld", t, (long long)config_.vocabulary);
  if (request.members.empty()) throw_error("BAD_ARGUMENT", "a sequence needs a policy");
  double total = 0;
  for (const auto& m : request.members) {
    if (m.adapter < -1 || m.adapter >= adapters) throw_error("BAD_ARGUMENT", "no adapter %d", m.adapter);
    total += double(m.weight);
  }
  if (request.members.size() > 1 && !(std::abs(total - 1) < 1e-4)) throw_error("BAD_ARGUMENT", "the weights of mixed policies add up to %g, expected 1", total);
  const int64_t longest = int64_t(prompt.size()) + request.max_new_tokens, members = int64_t(request.members.size());
  const int64_t need = cache_.bytes(longest) * members;
  if (need > limits_.memory)
    throw_error("OUT_OF_MEMORY", "the keys and values of a prompt of %zu and %lld new tokens under %lld polic%s take %.1f MB, free are %.1f MB: ask for fewer new tokens",
                prompt.size(), (long long)request.max_new_tokens, (long long)members, members == 1 ? "y" : "ies", double(need) / 1e6, double(limits_.memory) / 1e6);
  Sequence& s = waiting_.emplace_back();
  s.id = id;
  s.request = std::move(request);
}

void Generation::remove(int64_t id) {
  const auto same = [&](const Sequence& s) { return s.id == id; };
  for (Sequence& s : active_)
    if (same(s)) for (int slot : s.slots) cache_.close(slot);
  std::erase_if(active_, same);
  std::erase_if(waiting_, same);
}

bool Generation::is_done(const Sequence& s) const {
  return s.written >= s.request.max_new_tokens || (s.written > 0 && std::find(stop_.begin(), stop_.end(), s.last) != stop_.end());
}

void Generation::pack_adapters(const Model& model, const Bank* bank) {
  if (!bank || !device_.on_cpu() || !packs_steps(host_.kernels, model.storage())) return;
  std::set<int> in_use;
  for (const Sequence& s : active_)
    for (const auto& m : s.request.members) in_use.insert(m.adapter);
  packed_.hold(host_, config_, *bank, model.storage(), {in_use.begin(), in_use.end()});
}

// Opens waiting sequences in their order for as long as there is room.
void Generation::admit(std::vector<size_t>& fresh) {
  int64_t rows = 0;
  for (const Sequence& s : active_) rows += int64_t(s.slots.size());
  while (!waiting_.empty()) {
    Sequence& s = waiting_.front();
    const int64_t members = int64_t(s.request.members.size()), longest = int64_t(s.request.prompt.size()) + s.request.max_new_tokens;
    if (s.request.max_new_tokens > 0) {
      if (!active_.empty() && (rows + members > limits_.rows || !cache_.has_room(longest, members))) return;
      for (int64_t i = 0; i < members; ++i) s.slots.push_back(cache_.open(longest));
      rows += members;
    }
    if (s.request.sampling.repetition_penalty != 1.f) {
      s.is_seen.assign(size_t(config_.vocabulary), 0);
      for (int32_t t : s.request.prompt)
        if (!std::exchange(s.is_seen[size_t(t)], uint8_t(1))) s.seen.push_back(t);
    }
    fresh.push_back(active_.size());
    active_.push_back(std::move(s));
    waiting_.pop_front();
  }
}

Generation::Rows Generation::prefill(Model& model, const Network& network, const Bank* bank, const std::vector<size_t>& fresh, const Cancel& cancel) {
  // The same prompt under the same policy is read once; the others take a copy.
  std::vector<Continuation> parts;
  std::map<std::pair<int, std::vector<int32_t>>, size_t> known;
  std::vector<std::vector<size_t>> part_of;
  for (size_t i : fresh) {
    const Sequence& s = active_[i];
    auto& mine = part_of.emplace_back();
    for (size_t m = 0; m < s.slots.size(); ++m) {
      const int adapter = s.request.members[m].adapter;
      const auto [at, first] = known.try_emplace({adapter, s.request.prompt}, parts.size());
      if (first) parts.push_back({s.slots[m], adapter, s.request.prompt.data(), int64_t(s.request.prompt.size()), 0});
      mine.push_back(at->second);
    }
  }
  stood_ = false;
  const std::vector<const float*> read = model.next_logits(device_, network, bank, nullptr, cache_, parts, first_logits_, cancel);
  Rows out;
  for (size_t i = 0; i < fresh.size(); ++i) {
    Sequence& s = active_[fresh[i]];
    s.fed = int64_t(s.request.prompt.size());
    auto& rows = out.emplace_back();
    for (size_t m = 0; m < s.slots.size(); ++m) {
      const size_t part = part_of[i][m];
      if (parts[part].slot != s.slots[m]) cache_.copy(parts[part].slot, s.slots[m], s.fed);
      rows.push_back(read[part]);
    }
  }
  return out;
}

Generation::Rows Generation::step(Model& model, const Network& network, const Bank* bank, const std::vector<size_t>& running, const Cancel& cancel, Lane* lane) {
  std::vector<Continuation> parts;
  for (size_t i : running) {
    Sequence& s = active_[i];
    for (size_t m = 0; m < s.slots.size(); ++m) parts.push_back({s.slots[m], s.request.members[m].adapter, &s.last, 1, s.fed});
    ++s.fed;
  }
  const bool stands = standing_ && int64_t(parts.size()) <= StandingSteps::kMostRows;
  if (standing_) stood_ = stands;  // not where lanes are
  std::vector<const float*> read;
  if (stands) {
    std::vector<device::SampleRow> draws;
    int64_t positions = 0;
    for (size_t i : running) {
      const Sequence& s = active_[i];
      draws.insert(draws.end(), s.slots.size(), draw_of(s, nullptr));
      positions = std::max(positions, int64_t(s.request.prompt.size()) + s.request.max_new_tokens);
    }
    read = standing_->run(model, network, bank, cache_, parts, draws, positions, cancel);
  } else {
    const PackedAdapters* packed = bank && device_.on_cpu() && packs_steps(host_.kernels, model.storage()) ? &packed_ : nullptr;
    read = model.next_logits(device_, network, bank, packed, cache_, parts, lane ? lane->logits : logits_, cancel, lane);
  }
  Rows out(running.size());
  auto next = read.begin();
  for (size_t i = 0; i < running.size(); ++i) {
    const auto members = std::ptrdiff_t(active_[running[i]].slots.size());
    out[i].assign(next, next + members);
    next += members;
  }
  return out;
}

int64_t Generation::rows_of(const std::vector<size_t>& which) const {
  int64_t rows = 0;
  for (size_t i : which) rows += int64_t(active_[i].slots.size());
  return rows;
}

void Generation::steps_apart(Model& model, const Network& network, const Bank* bank, std::vector<size_t> running, int64_t lanes, int64_t steps,
                             const Cancel& cancel) {
  const auto adapter = [&](size_t i) { return active_[i].request.members[0].adapter; };
  std::stable_sort(running.begin(), running.end(), [&](size_t a, size_t b) { return adapter(a) < adapter(b); });
  std::vector<std::vector<size_t>> share(static_cast<size_t>(lanes));
  int64_t before = 0;
  for (const int64_t rows = rows_of(running); size_t i : running) {
    const int64_t mine = int64_t(active_[i].slots.size());
    share[size_t(std::min(lanes - 1, (before + mine / 2) * lanes / rows))].push_back(i);
    before += mine;
  }
  model.make_lanes(host_, host_.pool.size());
  host_.pool.run(lanes, [&](int64_t l, int thread) {
    Lane& lane = model.lane(thread);
    std::vector<size_t>& mine = share[size_t(l)];
    for (int64_t k = 0; k < steps && !mine.empty(); ++k) {
      cancel.check();
      choose(lane.context, mine, step(model, network, bank, mine, cancel, &lane), thread);
      std::erase_if(mine, [&](size_t i) { return is_done(active_[i]); });
    }
  });
}

void Generation::choose(Context& context, const std::vector<size_t>& which, Rows rows, int first) {
  const int64_t n = config_.vocabulary;
  std::vector<Sample> drawn(which.size());
  const auto one = [&](int64_t i, int own) {
    const size_t thread = size_t(first + own);
    const Sequence& s = active_[which[size_t(i)]];
    const SequenceRequest& q = s.request;
    const float* logits = rows[size_t(i)][0];
    if (q.members.size() > 1) {
      std::vector<float> weights;
      for (const auto& m : q.members) weights.push_back(m.weight);
      float* mixed = mixed_[thread].as<float>(n);
      mix_logits(context.kernels, q.mix, q.alpha, rows[size_t(i)], weights, n, mixed);
      logits = mixed;
    }
    drawn[size_t(i)] = sample(context.kernels, logits, n, q.sampling, q.seed, uint32_t(s.written), s.seen, scratch_[thread]);
  };
  const auto every = [&](size_t count, const auto& body) {
    if (int64_t(count) * n < 20'000) for (size_t i = 0; i < count; ++i) body(int64_t(i), 0);
    else context.pool.run(int64_t(count), body);
  };
  if (device_.on_cpu()) every(which.size(), one);
  else {
    const std::vector<size_t> here = draw_there(which, rows, drawn);
    every(here.size(), [&](int64_t i, int own) { one(int64_t(here[size_t(i)]), own); });
  }
  for (size_t i = 0; i < which.size(); ++i) {
    Sequence& s = active_[which[i]];
    s.last = drawn[i].token;
    ++s.written;
    if (!s.is_seen.empty() && !std::exchange(s.is_seen[size_t(s.last)], uint8_t(1))) s.seen.push_back(s.last);
    SequenceOutput& o = out_[s.output];
    o.tokens.push_back(s.last);
    o.logps.push_back(drawn[i].logp);
  }
}

std::vector<SequenceOutput> Generation::run(Model& model, const Bank* bank, int64_t steps, const Cancel& cancel) {
  out_.clear();
  const Network network = model.prepare(device_, bank, cancel);
  pack_adapters(model, bank);
  for (Sequence& s : active_) s.output = SIZE_MAX;
  scratch_.resize(size_t(host_.pool.size()));
  mixed_.resize(size_t(host_.pool.size()));
  for (int64_t i = 0, count = 1; i < steps; i += count) {
    count = 1;
    cancel.check();
    std::vector<size_t> fresh, running;
    for (size_t a = 0; a < active_.size(); ++a) running.push_back(a);
    admit(fresh);
    if (active_.empty()) break;
    for (Sequence& s : active_) {
      if (s.output != SIZE_MAX) continue;
      s.output = out_.size();
      out_.push_back({s.id, {}, {}, false});
    }
    std::erase_if(fresh, [&](size_t a) { return is_done(active_[a]); });
    bring(bank);
    if (!fresh.empty()) pack_adapters(model, bank);
    const int64_t lanes = fresh.empty() && device_.on_cpu() ? model.lanes_for(host_, int64_t(running.size()), rows_of(running)) : 0;
    if (lanes > 1) {
      count = std::min(steps - i, waiting_.empty() ? kStepsApart : kStepsAwaited);
      steps_apart(model, network, bank, running, lanes, count, cancel);
    } else if (!running.empty()) choose(host_, running, step(model, network, bank, running, cancel));
    if (!fresh.empty()) choose(host_, fresh, prefill(model, network, bank, fresh, cancel));
    for (Sequence& s : active_) {
      if (!is_done(s)) continue;
      out_[s.output].finished = true;
      for (int slot : s.slots) cache_.close(slot);
    }
    std::erase_if(active_, [&](const Sequence& s) { return is_done(s); });
  }
  if (left() == 0) {  // what the bank holds may change from here on
    packed_ = {};
    brought_.clear();
  }
  return std::move(out_);
}

std::vector<std::vector<int32_t>> Model::generate(Context& host, const Device& device, const std::vector<std::vector<int32_t>>& prompts, const Bank* bank,
                                                  const GenerateRequest& request, const Cancel& cancel) {
  if (request.seeds.size() != prompts.size()) throw_error("BAD_ARGUMENT", "%zu prompts need as many seeds, found %zu", prompts.size(), request.seeds.size());
  Generation generation(*this, host, device, {INT64_MAX, -1}, request.stop_tokens);
  std::vector<std::vector<int32_t>> out(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    SequenceRequest q;
    q.prompt = prompts[i];
    q.members = {{request.adapter, 1.f}};
    q.max_new_tokens = std::max<int64_t>(0, request.max_new_tokens);
    q.seed = request.seeds[i];
    q.sampling.temperature = request.temperature;
    q.sampling.top_k = request.top_k;
    q.sampling.top_p = request.top_p;
    generation.add(int64_t(i), std::move(q), bank ? bank->adapters() : 0);
  }
  for (SequenceOutput& o : generation.run(*this, bank, request.max_new_tokens, cancel)) out[size_t(o.id)] = std::move(o.tokens);
  return out;
}

}  // namespace pluralign
