#include "standing.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "model.h"

namespace pluralign {
namespace {

// A step is recorded once it has run so often one by one: a recording costs some of those. Twice as many wait after each that
// went stale, up to the most.
constexpr int64_t kFirstPlain = 2, kMostPlain = 256;

// Parts by adapter, and rows without one behind them.
Plan filled_plan(const std::vector<Continuation>& parts, int64_t rows, const KvCache& cache) {
  Plan plan = plan_of(parts, std::vector<bool>(parts.size(), true), cache);
  if (plan.rows < rows) plan.runs.push_back({plan.rows, rows - plan.rows, -1});
  for (; plan.rows < rows; ++plan.rows) {
    plan.trees.push_back({int(plan.rows)});
    plan.segments.push_back({plan.rows, 0, 0, {{0, 0}}});
    plan.read_rows.push_back(int32_t(plan.rows));
  }
  plan.readouts = rows;
  for (std::vector<int32_t>* of : {&plan.tokens, &plan.positions, &plan.targets}) of->resize(size_t(rows), 0);
  plan.row_keys.resize(size_t(rows), 0);
  return plan;
}

}  // namespace

// One number of rows.
class StandingSteps::Step {
 public:
  Step(const Device& device, Plan plan, std::vector<device::SampleRow> draws) : device_(device), plan_(device, std::move(plan), std::move(draws)) {}
  ~Step() { drop(); }
  Step(const Step&) = delete;

  PlacedPlan& plan() { return plan_; }

  // `queue` puts the step's operators onto the device. True where they were replayed.
  template <class Queue>
  bool run(Queue&& queue) {
    if (recording_) {
      if (device_.replay(recording_)) return true;
      drop();
      plain_ = 0;
      wait_ = std::min(2 * wait_, kMostPlain);
    }
    queue();
    if (++plain_ >= wait_ && records_) {
      // All memory that the step takes is there by now. The device has the step itself to do meanwhile.
      recording_ = device_.record(queue);
      records_ = recording_ != nullptr;
    }
    return false;
  }

 private:
  void drop() {
    if (recording_) device_.drop_recording(std::exchange(recording_, nullptr));
  }

  Device device_;
  PlacedPlan plan_;
  device::Recording* recording_ = nullptr;
  bool records_ = true;
  int64_t plain_ = 0, wait_ = kFirstPlain;
};

StandingSteps::StandingSteps(const Device& device) : device_(device) {}
StandingSteps::~StandingSteps() = default;

int64_t StandingSteps::filled_up(int64_t rows) { return rows <= 8 ? int64_t(std::bit_ceil(uint64_t(rows))) : (rows + 7) / 8 * 8; }

std::vector<const float*> StandingSteps::run(Model& model, const Network& network, const Bank* bank, const KvCache& cache, const std::vector<Continuation>& parts,
                                             const std::vector<device::SampleRow>& draws, int64_t positions, const Cancel& cancel) {
  if (const uint64_t id = bank ? bank->id() : 0; model_ != &model || bank_ != id) {
    steps_.clear();
    model_ = &model;
    bank_ = id;
  }
  rows_ = filled_up(int64_t(parts.size()));
  vocabulary_ = model.config().vocabulary;
  float* logits = model.step_logits(device_, rows_);
  int32_t* drawn = drawn_.as<int32_t>(device_, 2 * rows_);
  logits_ = logits;
  fetched_.clear();

  std::vector<Continuation> sorted;
  std::vector<device::SampleRow> each;
  std::vector<const float*> out(parts.size());
  for (size_t i : by_adapter(parts)) {
    const float* row = logits + int64_t(sorted.size()) * vocabulary_;
    out[i] = row;
    sorted.push_back(parts[i]);
    each.push_back(draws[i]);
    each.back().logits = row;
  }
  while (int64_t(each.size()) < rows_) each.push_back({logits + int64_t(each.size()) * vocabulary_, 0, 1, 1});
  model.reserve_positions(device_, positions);  // a table that grew lies elsewhere, and what was recorded over it is stale

  const bool adapted = sorted.back().adapter >= 0;
  Plan plan = filled_plan(sorted, rows_, cache);
  std::unique_ptr<Step>& step = steps_[{rows_, adapted}];
  if (step) step->plan().renew(std::move(plan), std::move(each));
  else step = std::make_unique<Step>(device_, std::move(plan), std::move(each));
  const PlacedBank* placed = adapted && bank ? &bank->on(device_) : nullptr;
  replayed_ += step->run([&] { model.queue_step(device_, network, placed, cache, step->plan(), logits, drawn, cancel); });
  return out;
}

void StandingSteps::fetch() {
  if (!fetched_.empty()) return;
  fetched_.resize(size_t(2 * rows_));
  device_.fetch(fetched_.data(), drawn_.data(), fetched_.size() * 4);
}

float StandingSteps::logp(const float* logits) const { return std::bit_cast<float>(fetched_[place(logits) + size_t(rows_)]); }

}  // namespace pluralign
