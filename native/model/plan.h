// The packed batch as the decoder walks it: checked, with positions, paths, trees and runs of rows of one adapter.
#pragma once
#include <cstdint>
#include <vector>

namespace pluralign {

// Arrays as in NativePack (lib/native/addon.ts).
struct Pack {
  const int32_t* tokens;
  int64_t token_count;
  const int32_t *starts, *parents, *adapters;
  const uint8_t* needs_grad;
  const uint32_t* keys;
  int64_t segments;
  const int32_t *rows, *targets;
  int64_t readouts;
};

struct PathSpan {
  int64_t row, rows;
};

struct PlanSegment {
  int64_t row, rows, prefix;
  std::vector<PathSpan> path;  // root first, own rows last
};

struct AdapterRun {
  int64_t row, rows;
  int adapter;
};

// One side of a pack: the segments that keep activations, or those that do not. Rows count from the side's first.
struct Plan {
  int64_t first_row = 0, rows = 0, longest = 0;
  int64_t first_readout = 0, readouts = 0;
  std::vector<int32_t> tokens, positions, read_rows, targets;
  std::vector<uint64_t> row_keys;
  std::vector<PlanSegment> segments;
  std::vector<std::vector<int>> trees;
  std::vector<AdapterRun> runs;
};

// The rows of a plan that are read, each once: all that a last layer computes of beside keys and values.
struct ReadRows {
  std::vector<int32_t> rows;  // in the whole plan, ascending
  // Of these rows: segments are stretches of queries, whose paths lie in the whole plan. It embeds nothing, so it has no tokens.
  Plan plan;
};
ReadRows read_rows_of(const Plan& plan);

// Throws BAD_ARGUMENT naming what is wrong: segments out of order, a token outside the vocabulary, a child of another
// adapter, a row outside the pack … `adapters`: how many the bank has.
void make_plans(const Pack& pack, int64_t vocabulary, int adapters, bool read_targets, Plan& with_grad, Plan& without);

}  // namespace pluralign
