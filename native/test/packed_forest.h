// A packed batch from segments, as the operators of a device take it: parents[i] < i or -1, rows of a segment, its adapter.
// Tokens count up; every row is read.
#pragma once
#include <algorithm>
#include <vector>

#include "device/operators.h"

namespace pluralign::test {

struct PackedForest {
  PackedForest() : PackedForest({}, {}, {}) {}
  PackedForest(const std::vector<int>& parents, const std::vector<int64_t>& lengths, const std::vector<int>& adapters, int64_t vocabulary = 17) {
    std::vector<std::vector<device::PlanSpan>> paths;
    std::vector<std::vector<int32_t>> trees;
    std::vector<int> tree_of;
    for (size_t i = 0; i < parents.size(); ++i) {
      const int parent = parents[i];
      paths.push_back(parent < 0 ? std::vector<device::PlanSpan>{} : paths[size_t(parent)]);
      int64_t prefix = 0;
      for (const device::PlanSpan& s : paths[i]) prefix += s.rows;
      paths[i].push_back({rows, lengths[i]});
      tree_of.push_back(parent < 0 ? int(trees.size()) : tree_of[size_t(parent)]);
      if (parent < 0) trees.emplace_back();
      trees[size_t(tree_of[i])].push_back(int32_t(i));
      nodes.push_back({rows, lengths[i], prefix, int64_t(spans.size()), int64_t(paths[i].size())});
      spans.insert(spans.end(), paths[i].begin(), paths[i].end());
      if (!runs.empty() && runs.back().adapter == adapters[i]) runs.back().rows += lengths[i];
      else runs.push_back({rows, lengths[i], adapters[i], 0});
      for (int64_t t = 0; t < lengths[i]; ++t) {
        tokens.push_back(int32_t((rows + t * 7) % vocabulary));
        targets.push_back(int32_t((rows * 3 + t * 5 + 1) % vocabulary));
        positions.push_back(int32_t(prefix + t));
        keys.push_back(uint64_t(i + 5) << 32 | uint64_t(prefix + t));
        read_rows.push_back(int32_t(rows + t));
      }
      rows += lengths[i];
      longest = std::max(longest, prefix + lengths[i]);
    }
    for (const auto& t : trees) {
      tree_starts.push_back(int32_t(tree_nodes.size()));
      tree_nodes.insert(tree_nodes.end(), t.begin(), t.end());
    }
    tree_starts.push_back(int32_t(tree_nodes.size()));
  }

  device::PlanArrays arrays() const {
    return {rows,          int64_t(nodes.size()), int64_t(spans.size()), int64_t(tree_starts.size()) - 1, int64_t(runs.size()), int64_t(read_rows.size()), longest,
            tokens.data(), positions.data(),      keys.data(),           nodes.data(),                    spans.data(),         tree_starts.data(),        tree_nodes.data(),
            runs.data(),   read_rows.data(),      targets.data()};
  }

  int64_t rows = 0, longest = 0;
  std::vector<int32_t> tokens, targets, positions, tree_starts, tree_nodes, read_rows;
  std::vector<uint64_t> keys;
  std::vector<device::PlanNode> nodes;
  std::vector<device::PlanSpan> spans;
  std::vector<device::PlanRun> runs;
};

}  // namespace pluralign::test
