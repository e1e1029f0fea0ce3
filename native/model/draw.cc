// Next tokens, drawn where the logits are: a device draws what is neither cut nor penalised nor mixed, the host the rest.
#include "generate.h"

namespace pluralign {

bool Generation::is_drawn_there(const Sequence& s) const {
  const SampleOptions& o = s.request.sampling;
  const bool cut = o.temperature > 0 && ((o.top_k > 0 && o.top_k < config_.vocabulary) || o.top_p < 1 || o.min_p > 0);
  return !cut && s.request.members.size() == 1 && o.repetition_penalty == 1.f;
}

device::SampleRow Generation::draw_of(const Sequence& s, const float* logits) const {
  const SampleOptions& o = s.request.sampling;
  return {logits, sample_place(s.request.seed, uint32_t(s.written)), o.temperature > 0 ? 1.f / o.temperature : 1.f, !(o.temperature > 0)};
}

std::vector<size_t> Generation::draw_there(const std::vector<size_t>& which, Rows& rows, std::vector<Sample>& drawn) {
  std::vector<size_t> there, here;
  for (size_t i = 0; i < which.size(); ++i) (is_drawn_there(active_[which[i]]) ? there : here).push_back(i);
  if (stood_ && !there.empty()) {
    standing_->fetch();
    for (size_t i : there) drawn[i].token = standing_->token(rows[i][0]), drawn[i].logp = standing_->logp(rows[i][0]);
  } else if (const auto n = int64_t(there.size()); n > 0) {
    std::vector<device::SampleRow> calls;
    for (size_t i : there) calls.push_back(draw_of(active_[which[i]], rows[i][0]));
    std::vector<int32_t> fetched(there.size() * 2);
    int32_t* out = drawn_.as<int32_t>(device_, 2 * n);
    device_.run(&device::Table::sample, device::SampleCall{n, config_.vocabulary, calls.data(), out, reinterpret_cast<float*>(out + n)});
    device_.fetch(fetched.data(), out, fetched.size() * 4);
    for (size_t i = 0; i < there.size(); ++i) drawn[there[i]].token = fetched[i], drawn[there[i]].logp = std::bit_cast<float>(fetched[i + there.size()]);
  }
  for (size_t i : there)
    if (drawn[i].token < 0) here.push_back(i);  // a damaged row: the host says how
  int64_t count = 0;
  for (size_t i : here) count += int64_t(rows[i].size());
  float* to = count > 0 ? fetched_.as<float>(count * config_.vocabulary) : nullptr;
  for (size_t i : here)
    for (const float*& row : rows[i]) {
      device_.fetch(to, row, size_t(config_.vocabulary) * 4);
      row = to;
      to += config_.vocabulary;
    }
  return here;
}

}  // namespace pluralign
