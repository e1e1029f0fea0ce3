#include "shares.h"

#include <algorithm>

namespace pluralign {
namespace {

// The end of each share, as segments.
std::vector<size_t> ends_of(const Plan& plan, int64_t rows) {
  std::vector<size_t> last(plan.segments.size());  // of the tree a segment is in
  for (const std::vector<int>& tree : plan.trees)
    for (int s : tree) last[size_t(s)] = size_t(*std::max_element(tree.begin(), tree.end()));
  std::vector<size_t> ends;
  size_t open = 0;  // no tree that was met reaches farther
  int64_t taken = 0;
  for (size_t s = 0; s < plan.segments.size(); ++s) {
    open = std::max(open, last[s]);
    taken += plan.segments[s].rows;
    if (open != s || taken < rows) continue;
    ends.push_back(s + 1);
    taken = 0;
  }
  // What is left is too little for itself.
  if (ends.empty()) ends.push_back(plan.segments.size());
  ends.back() = plan.segments.size();
  return ends;
}

Plan between(const Plan& plan, size_t first, size_t end) {
  Plan out;
  const int64_t row = plan.segments[first].row, stop = plan.segments[end - 1].row + plan.segments[end - 1].rows;
  out.first_row = plan.first_row + row;
  out.rows = stop - row;
  for (size_t s = first; s < end; ++s) {
    PlanSegment segment = plan.segments[s];
    segment.row -= row;
    for (PathSpan& span : segment.path) span.row -= row;
    out.longest = std::max(out.longest, segment.prefix + segment.rows);
    out.segments.push_back(std::move(segment));
  }
  for (const std::vector<int>& tree : plan.trees) {
    if (tree.front() < int(first) || tree.front() >= int(end)) continue;
    auto& mine = out.trees.emplace_back(tree);
    for (int& s : mine) s -= int(first);
  }
  for (const AdapterRun& run : plan.runs) {
    const int64_t from = std::max(run.row, row), to = std::min(run.row + run.rows, stop);
    if (from < to) out.runs.push_back({from - row, to - from, run.adapter});
  }
  const auto rows = [&](const auto& all, auto& mine) { mine.assign(all.begin() + row, all.begin() + stop); };
  rows(plan.tokens, out.tokens);
  rows(plan.positions, out.positions);
  rows(plan.row_keys, out.row_keys);
  const auto from = std::lower_bound(plan.read_rows.begin(), plan.read_rows.end(), row) - plan.read_rows.begin();
  const auto to = std::lower_bound(plan.read_rows.begin(), plan.read_rows.end(), stop) - plan.read_rows.begin();
  out.first_readout = plan.first_readout + from;
  out.readouts = to - from;
  out.targets.assign(plan.targets.begin() + from, plan.targets.begin() + to);
  for (auto i = from; i < to; ++i) out.read_rows.push_back(int32_t(plan.read_rows[size_t(i)] - row));
  return out;
}

}  // namespace

std::vector<Plan> cut_plan(Plan plan, int64_t rows) {
  std::vector<Plan> out;
  const std::vector<size_t> ends = plan.rows < 2 * rows ? std::vector<size_t>{} : ends_of(plan, rows);
  if (ends.size() < 2) {
    out.push_back(std::move(plan));
    return out;
  }
  for (size_t i = 0, first = 0; i < ends.size(); first = ends[i++]) out.push_back(between(plan, first, ends[i]));
  return out;
}

PlacedBank& KeptShare::bank_apart(const Device& device, const Bank& bank) {
  if (bank_id_ != bank.id()) {
    bank_ = std::make_unique<PlacedBank>(device, bank, gradients_.as<float>(bank.size()));
    bank_id_ = bank.id();
  }
  return *bank_;
}

}  // namespace pluralign
