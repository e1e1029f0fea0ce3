#include "plan.h"

#include <algorithm>

#include "base/status.h"

namespace pluralign {
namespace {

void refuse(const char* what, int64_t where) { throw_error("BAD_ARGUMENT", "pack: %s (at %lld)", what, (long long)where); }

void check(const Pack& p, int64_t vocabulary, int adapters, bool read_targets) {
  if (p.segments > 0 && p.starts[0] != 0) refuse("segmentStarts must begin with 0", 0);
  for (int64_t s = 0; s < p.segments; ++s) {
    if (p.starts[s + 1] <= p.starts[s]) refuse("a segment must have at least one token", s);
    if (p.adapters[s] < -1 || p.adapters[s] >= adapters) refuse("no such adapter", s);
    if (s > 0 && p.needs_grad[s] && !p.needs_grad[s - 1]) refuse("segments that need a gradient must come first", s);
    const int32_t parent = p.parents[s];
    if (parent == -1) continue;
    if (parent < 0 || parent >= s) refuse("a parent must come before its children", s);
    if (p.adapters[parent] != p.adapters[s]) refuse("a child must have its parent's adapter", s);
    if (!p.needs_grad[parent] != !p.needs_grad[s]) refuse("a child must need a gradient where its parent does", s);
  }
  if (p.segments == 0 ? p.token_count != 0 : p.starts[p.segments] != p.token_count) refuse("segmentStarts must end with the number of tokens", p.segments);
  for (int64_t t = 0; t < p.token_count; ++t)
    if (p.tokens[t] < 0 || p.tokens[t] >= vocabulary)
      throw_error("BAD_ARGUMENT", "token id %d is outside the model's vocabulary of %lld: is the tokenizer of another model?", p.tokens[t], (long long)vocabulary);
  for (int64_t i = 0; i < p.readouts; ++i) {
    if (p.rows[i] < 0 || p.rows[i] >= p.token_count || (i > 0 && p.rows[i] < p.rows[i - 1])) refuse("rows must ascend inside the pack", i);
    if (read_targets && (p.targets[i] < 0 || p.targets[i] >= vocabulary)) refuse("a target is outside the vocabulary", i);
  }
}

}  // namespace

void make_plans(const Pack& pack, int64_t vocabulary, int adapters, bool read_targets, Plan& with_grad, Plan& without) {
  check(pack, vocabulary, adapters, read_targets);
  with_grad = Plan{};
  without = Plan{};
  std::vector<int> index(static_cast<size_t>(pack.segments)), tree(static_cast<size_t>(pack.segments));
  for (int64_t s = 0; s < pack.segments; ++s) {
    Plan& plan = pack.needs_grad[s] ? with_grad : without;
    const int64_t start = pack.starts[s], rows = pack.starts[s + 1] - start;
    if (plan.segments.empty()) plan.first_row = start;
    PlanSegment segment{start - plan.first_row, rows, 0, {}};
    if (const int32_t parent = pack.parents[s]; parent >= 0) {
      const PlanSegment& above = plan.segments[size_t(index[size_t(parent)])];
      segment.path = above.path;
      segment.prefix = above.prefix + above.rows;
      tree[size_t(s)] = tree[size_t(parent)];
    } else {
      tree[size_t(s)] = int(plan.trees.size());
      plan.trees.emplace_back();
    }
    segment.path.push_back({segment.row, rows});
    index[size_t(s)] = int(plan.segments.size());
    plan.trees[size_t(tree[size_t(s)])].push_back(index[size_t(s)]);
    for (int64_t i = 0; i < rows; ++i) {
      plan.tokens.push_back(pack.tokens[start + i]);
      plan.positions.push_back(int32_t(segment.prefix + i));
      plan.row_keys.push_back(uint64_t(pack.keys[s]) << 32 | uint32_t(segment.prefix + i));
    }
    if (!plan.runs.empty() && plan.runs.back().adapter == pack.adapters[s]) plan.runs.back().rows += rows;
    else plan.runs.push_back({segment.row, rows, pack.adapters[s]});
    plan.longest = std::max(plan.longest, segment.prefix + rows);
    plan.rows += rows;
    plan.segments.push_back(std::move(segment));
  }
  for (int64_t i = 0; i < pack.readouts; ++i) {
    Plan& plan = pack.rows[i] < with_grad.rows ? with_grad : without;
    if (plan.readouts++ == 0) plan.first_readout = i;
    plan.read_rows.push_back(int32_t(pack.rows[i] - plan.first_row));
    plan.targets.push_back(read_targets ? pack.targets[i] : 0);
  }
}

ReadRows read_rows_of(const Plan& whole) {
  ReadRows out;
  Plan& plan = out.plan;
  for (int32_t row : whole.read_rows) {
    if (out.rows.empty() || out.rows.back() != row) out.rows.push_back(row);
    plan.read_rows.push_back(int32_t(out.rows.size()) - 1);
  }
  plan.rows = int64_t(out.rows.size());
  plan.readouts = whole.readouts;
  plan.targets = whole.targets;
  plan.longest = whole.longest;
  size_t segment = 0, run = 0;
  int64_t last = -2;  // the row before
  std::vector<std::vector<int>> stretches(whole.segments.size());
  for (int64_t i = 0; i < plan.rows; ++i) {
    const int64_t row = out.rows[size_t(i)];
    while (row >= whole.segments[segment].row + whole.segments[segment].rows) ++segment;
    while (row >= whole.runs[run].row + whole.runs[run].rows) ++run;
    const PlanSegment& s = whole.segments[segment];
    if (row != last + 1 || row == s.row) {
      stretches[segment].push_back(int(plan.segments.size()));
      plan.segments.push_back({i, 0, s.prefix + row - s.row, s.path});
    }
    PlanSegment& mine = plan.segments.back();
    mine.path.back().rows = row - s.row + 1;
    ++mine.rows;
    if (plan.runs.empty() || plan.runs.back().adapter != whole.runs[run].adapter) plan.runs.push_back({i, 0, whole.runs[run].adapter});
    ++plan.runs.back().rows;
    plan.positions.push_back(whole.positions[size_t(row)]);
    plan.row_keys.push_back(whole.row_keys[size_t(row)]);
    last = row;
  }
  for (const std::vector<int>& tree : whole.trees) {
    std::vector<int> mine;
    for (int s : tree) mine.insert(mine.end(), stretches[size_t(s)].begin(), stretches[size_t(s)].end());
    if (!mine.empty()) plan.trees.push_back(std::move(mine));
  }
  return out;
}

}  // namespace pluralign
