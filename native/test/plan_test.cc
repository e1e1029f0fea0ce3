// The packed batch as the decoder walks it: positions, paths, trees, runs, and every refusal.
#include "model/plan.h"

#include "model/shares.h"

#include "support.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

struct PackData {
  std::vector<int32_t> tokens, starts, parents, adapters, rows, targets;
  std::vector<uint8_t> grads;
  std::vector<uint32_t> keys;

  Pack pack() const {
    return {tokens.data(), int64_t(tokens.size()), starts.data(), parents.data(), adapters.data(), grads.data(), keys.data(), int64_t(parents.size()),
            rows.data(), targets.data(), int64_t(rows.size())};
  }
};

// Trees: 0 ← {1, 2 ← 3} of adapter 1, 4 of adapter 0, both with a gradient; 5 ← 6 of adapter 0, 7 of the base, without.
PackData good() {
  PackData p;
  p.parents = {-1, 0, 0, 2, -1, -1, 5, -1};
  p.adapters = {1, 1, 1, 1, 0, 0, 0, -1};
  p.grads = {1, 1, 1, 1, 1, 0, 0, 0};
  p.keys = {7, 8, 9, 10, 11, 12, 13, 0xffffffffu};
  int32_t at = 0;
  for (int32_t n : {3, 2, 4, 1, 5, 2, 3, 1}) {
    p.starts.push_back(at);
    at += n;
  }
  p.starts.push_back(at);
  for (int32_t t = 0; t < at; ++t) p.tokens.push_back(t % 10);
  p.rows = {0, 2, 2, 9, 14, 15, 19, 20};
  p.targets = {1, 2, 3, 4, 5, 6, 7, 9};
  return p;
}

void refused(const char* why, void (*damage)(PackData&), bool read_targets = true) {
  PackData p = good();
  damage(p);
  Plan a, b;
  CHECK_THROWS("BAD_ARGUMENT", why, make_plans(p.pack(), 10, 2, read_targets, a, b));
}

std::vector<int64_t> path(const PlanSegment& s) {
  std::vector<int64_t> flat;
  for (const PathSpan& p : s.path) {
    flat.push_back(p.row);
    flat.push_back(p.rows);
  }
  return flat;
}

// Cut and put together again a plan is what it was.
void check_cut(const Plan& whole, int64_t rows, size_t count) {
  const std::vector<Plan> shares = cut_plan(whole, rows);
  CHECK(shares.size() == count);
  int64_t row = 0, readout = 0;
  size_t segment = 0, trees = 0;
  for (const Plan& s : shares) {
    CHECK(s.first_row == whole.first_row + row && s.first_readout == whole.first_readout + readout);
    CHECK(count == 1 || s.rows >= rows);
    for (int64_t r = 0; r < s.rows; ++r) {
      CHECK(s.tokens[size_t(r)] == whole.tokens[size_t(row + r)] && s.positions[size_t(r)] == whole.positions[size_t(row + r)]);
      CHECK(s.row_keys[size_t(r)] == whole.row_keys[size_t(row + r)]);
    }
    for (int64_t i = 0; i < s.readouts; ++i) {
      CHECK(s.read_rows[size_t(i)] + row == whole.read_rows[size_t(readout + i)] && s.targets[size_t(i)] == whole.targets[size_t(readout + i)]);
      CHECK(s.read_rows[size_t(i)] < s.rows);
    }
    int64_t by_run = 0, longest = 0;
    for (const AdapterRun& run : s.runs) {
      CHECK(run.row == by_run && run.rows > 0);
      for (const AdapterRun& all : whole.runs)
        if (all.row <= row + run.row && row + run.row < all.row + all.rows) CHECK(all.adapter == run.adapter && row + run.row + run.rows <= all.row + all.rows);
      by_run += run.rows;
    }
    CHECK(by_run == s.rows);
    const size_t base = segment;
    for (const PlanSegment& mine : s.segments) {
      const PlanSegment& all = whole.segments[segment++];
      CHECK(mine.row + row == all.row && mine.rows == all.rows && mine.prefix == all.prefix && mine.path.size() == all.path.size());
      for (size_t i = 0; i < mine.path.size(); ++i) CHECK(mine.path[i].row + row == all.path[i].row && mine.path[i].rows == all.path[i].rows);
      longest = std::max(longest, mine.prefix + mine.rows);
    }
    CHECK(longest == s.longest);
    for (const std::vector<int>& tree : s.trees) {
      const std::vector<int>& all = whole.trees[trees++];
      CHECK(tree.size() == all.size());
      for (size_t i = 0; i < tree.size(); ++i) CHECK(tree[i] + int(base) == all[i]);
    }
    row += s.rows;
    readout += s.readouts;
  }
  CHECK(row == whole.rows && readout == whole.readouts && segment == whole.segments.size() && trees == whole.trees.size());
}

}  // namespace

TEST(plan_walks_a_forest) {
  const PackData p = good();
  Plan a, b;
  make_plans(p.pack(), 10, 2, true, a, b);
  CHECK(a.first_row == 0 && a.rows == 15 && a.longest == 8);
  CHECK(b.first_row == 15 && b.rows == 6 && b.longest == 5);
  CHECK_BITS("tokens", a.tokens, std::vector<int32_t>(p.tokens.begin(), p.tokens.begin() + 15));
  CHECK_BITS("tokens", b.tokens, std::vector<int32_t>(p.tokens.begin() + 15, p.tokens.end()));
  CHECK_BITS("positions", a.positions, std::vector<int32_t>{0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4});
  CHECK_BITS("positions", b.positions, std::vector<int32_t>{0, 1, 2, 3, 4, 0});
  if (!CHECK(a.segments.size() == 5 && b.segments.size() == 3)) return;
  CHECK_BITS("root", path(a.segments[0]), std::vector<int64_t>{0, 3});
  CHECK_BITS("child", path(a.segments[1]), std::vector<int64_t>{0, 3, 3, 2});
  CHECK_BITS("grandchild", path(a.segments[3]), std::vector<int64_t>{0, 3, 5, 4, 9, 1});
  CHECK(a.segments[3].prefix == 7 && a.segments[3].row == 9 && a.segments[3].rows == 1);
  CHECK_BITS("child without a gradient", path(b.segments[1]), std::vector<int64_t>{0, 2, 2, 3});
  CHECK(a.trees == std::vector<std::vector<int>>({{0, 1, 2, 3}, {4}}));
  CHECK(b.trees == std::vector<std::vector<int>>({{0, 1}, {2}}));
  const auto runs = [](const Plan& plan) {
    std::vector<int64_t> flat;
    for (const AdapterRun& r : plan.runs) flat.insert(flat.end(), {r.row, r.rows, r.adapter});
    return flat;
  };
  CHECK_BITS("runs", runs(a), std::vector<int64_t>{0, 10, 1, 10, 5, 0});
  CHECK_BITS("runs", runs(b), std::vector<int64_t>{0, 5, 0, 5, 1, -1});
  CHECK(a.first_readout == 0 && a.readouts == 5 && b.first_readout == 5 && b.readouts == 3);
  CHECK_BITS("rows", a.read_rows, std::vector<int32_t>{0, 2, 2, 9, 14});
  CHECK_BITS("rows", b.read_rows, std::vector<int32_t>{0, 4, 5});
  CHECK_BITS("targets", b.targets, std::vector<int32_t>{6, 7, 9});
  // Keys are of the segment and the position, so that a row draws one mask in whatever pack it stands.
  CHECK(a.row_keys[3] == (uint64_t(8) << 32 | 3) && a.row_keys[9] == (uint64_t(10) << 32 | 7) && b.row_keys[5] == uint64_t(0xffffffffu) << 32);
}

TEST(plan_takes_what_is_empty) {
  PackData p;
  p.starts = {0};
  Plan a, b;
  make_plans(p.pack(), 10, 0, true, a, b);
  CHECK(a.rows == 0 && b.rows == 0 && a.readouts == 0 && a.segments.empty());
  p = good();
  p.rows.clear();
  p.targets.clear();
  make_plans(p.pack(), 10, 2, true, a, b);
  CHECK(a.readouts == 0 && b.readouts == 0 && a.rows == 15);
  p = good();
  std::fill(p.grads.begin(), p.grads.end(), 0);
  make_plans(p.pack(), 10, 2, true, a, b);
  CHECK(a.rows == 0 && b.rows == 21 && b.first_readout == 0 && b.readouts == 8);
  // Targets are not looked at where a reward is read.
  p.targets.assign(8, -5);
  make_plans(p.pack(), 10, 2, false, a, b);
  CHECK_BITS("targets", b.targets, std::vector<int32_t>(8, 0));
}

TEST(plan_refuses_what_does_not_fit) {
  refused("begin with 0", [](PackData& p) { p.starts[0] = 1; });
  refused("at least one token", [](PackData& p) { p.starts[2] = p.starts[1]; });
  refused("at least one token", [](PackData& p) { p.starts[2] = -4; });
  refused("end with the number of tokens", [](PackData& p) { p.starts.back() = 30; });
  refused("end with the number of tokens", [](PackData& p) { p.tokens.pop_back(); });
  refused("no such adapter", [](PackData& p) { p.adapters[7] = 2; });
  refused("no such adapter", [](PackData& p) { p.adapters[7] = -2; });
  refused("must come first", [](PackData& p) { p.grads[7] = 1; });
  refused("before its children", [](PackData& p) { p.parents[2] = 2; });
  refused("before its children", [](PackData& p) { p.parents[2] = 3; });
  refused("before its children", [](PackData& p) { p.parents[2] = -2; });
  refused("before its children", [](PackData& p) { p.parents[0] = 0; });
  refused("parent's adapter", [](PackData& p) { p.adapters[3] = 0; });
  refused("where its parent does", [](PackData& p) { p.parents[5] = 4; });
  refused("vocabulary", [](PackData& p) { p.tokens[20] = 10; });
  refused("vocabulary", [](PackData& p) { p.tokens[0] = -1; });
  refused("ascend inside", [](PackData& p) { p.rows[7] = 21; });
  refused("ascend inside", [](PackData& p) { p.rows[0] = -1; });
  refused("ascend inside", [](PackData& p) { p.rows[3] = 1; });
  refused("ascend inside", [](PackData& p) { p.rows[7] = 21; }, false);
  refused("target", [](PackData& p) { p.targets[2] = 10; });
  refused("target", [](PackData& p) { p.targets[2] = -1; });
  refused("end with the number of tokens", [](PackData& p) {
    p.parents.clear();
    p.rows.clear();
  });
}

TEST(plan_of_the_rows_that_are_read) {
  Plan grad, free;
  PackData p = good();
  p.rows = {0, 2, 2, 5, 6, 7, 9, 10, 20};
  p.targets.assign(9, 1);
  make_plans(p.pack(), 10, 2, true, grad, free);
  const ReadRows read = read_rows_of(grad);
  CHECK_BITS("rows", read.rows, std::vector<int32_t>{0, 2, 5, 6, 7, 9, 10});
  CHECK(read.plan.rows == 7 && read.plan.readouts == 8 && read.plan.longest == grad.longest);
  CHECK_BITS("readouts", read.plan.read_rows, std::vector<int32_t>{0, 1, 1, 2, 3, 4, 5, 6});
  CHECK_BITS("positions", read.plan.positions, std::vector<int32_t>{0, 2, 3, 4, 5, 7, 0});
  for (size_t i = 0; i < read.rows.size(); ++i) CHECK(read.plan.row_keys[i] == grad.row_keys[size_t(read.rows[i])]);
  // Stretches: two of the root, one of the second branch, one of its child, one of the other tree.
  if (!CHECK(read.plan.segments.size() == 5)) return;
  const auto is = [&](size_t i, int64_t row, int64_t rows, int64_t prefix, const std::vector<int64_t>& spans) {
    const PlanSegment& s = read.plan.segments[i];
    CHECK(s.row == row && s.rows == rows && s.prefix == prefix);
    CHECK_BITS("path", path(s), spans);
  };
  is(0, 0, 1, 0, {0, 1});
  is(1, 1, 1, 2, {0, 3});
  is(2, 2, 3, 3, {0, 3, 5, 3});
  is(3, 5, 1, 7, {0, 3, 5, 4, 9, 1});
  is(4, 6, 1, 0, {10, 1});
  CHECK(read.plan.trees == std::vector<std::vector<int>>({{0, 1, 2, 3}, {4}}));
  CHECK(read.plan.runs.size() == 2 && read.plan.runs[0].adapter == 1 && read.plan.runs[0].rows == 6 && read.plan.runs[1].row == 6 && read.plan.runs[1].rows == 1);
  // Nothing of a tree, and nothing at all.
  const ReadRows one = read_rows_of(free);
  CHECK(one.plan.rows == 1 && one.plan.trees.size() == 1 && one.plan.runs.size() == 1 && one.plan.runs[0].adapter == -1);
  CHECK(read_rows_of(Plan{}).plan.rows == 0);
}

TEST(plan_is_cut_between_trees) {
  Plan grad, free;
  const PackData p = good();
  make_plans(p.pack(), 10, 2, true, grad, free);
  // Rows: a tree of 10 and one of 5; then one of 5 and one of 1.
  check_cut(grad, 1, 2);
  check_cut(grad, 5, 2);
  check_cut(grad, 6, 1);  // what is left behind the first joins it
  check_cut(grad, 8, 1);
  check_cut(free, 1, 2);
  check_cut(free, 3, 1);
  check_cut(Plan{}, 4, 1);
  // Trees whose rows lie between each other's stay together.
  PackData mixed = p;
  mixed.parents = {-1, 0, -1, 1, 2, -1, 5, -1};
  mixed.adapters = {1, 1, 1, 1, 1, 0, 0, -1};
  mixed.grads.assign(8, 1);
  make_plans(mixed.pack(), 10, 2, true, grad, free);
  check_cut(grad, 1, 3);
  check_cut(grad, 4, 2);
}
