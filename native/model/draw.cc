// Next tokens, drawn where the logits are: a device draws what is neither cut nor penalised nor mixed, the host the rest.
#include "generate.h"

namespace pluralign {

std::vector<size_t> Generation::draw_there(const std::vector<size_t>& which, Rows& rows, std::vector<Sample>& drawn) {
  std::vector<size_t> there, here;
  std::vector<device::SampleRow> calls;
  for (size_t i = 0; i < which.size(); ++i) {
    const Sequence& s = active_[which[i]];
    const SampleOptions& o = s.request.sampling;
    const bool cut = o.temperature > 0 && ((o.top_k > 0 && o.top_k < config_.vocabulary) || o.top_p < 1 || o.min_p > 0);
    if (cut || s.request.members.size() > 1 || o.repetition_penalty != 1.f) here.push_back(i);
    else {
      there.push_back(i);
      calls.push_back({rows[i][0], sample_place(s.request.seed, uint32_t(s.written)), o.temperature > 0 ? 1.f / o.temperature : 1.f, !(o.temperature > 0)});
    }
  }
  const auto n = int64_t(there.size());
  std::vector<int32_t> drawn_there(there.size() * 2);
  if (n > 0) {
    int32_t* out = drawn_.as<int32_t>(device_, 2 * n);
    device_.run(&device::Table::sample, device::SampleCall{n, config_.vocabulary, calls.data(), out, reinterpret_cast<float*>(out + n)});
    device_.fetch(drawn_there.data(), out, drawn_there.size() * 4);
  }
  for (size_t i = 0; i < there.size(); ++i) {
    Sample& d = drawn[there[i]];
    d.token = drawn_there[i];
    d.logp = std::bit_cast<float>(drawn_there[i + there.size()]);
    if (d.token < 0) here.push_back(there[i]);  // a damaged row: the host says how
  }
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
