// Steps of generation on a device as sequences of operators that stay the same: rows are filled up to one of a few numbers, and
// what differs from step to step (tokens, positions, where keys lie, adapters, draws) lies in one plan that is renewed in place. So
// a sequence is recorded once and replayed by one call. Where the device records nothing, the same operators run one by one:
// no result depends on which it was.
#pragma once
#include <map>

#include "continuation.h"

namespace pluralign {

class Model;

class StandingSteps {
 public:
  static constexpr int64_t kMostRows = 256;  // beyond, launches are no longer what a step costs

  explicit StandingSteps(const Device& device);
  ~StandingSteps();

  // Runs the one row of each part and draws behind it as told (the logits of draws are filled in). Gives the logits of each part,
  // which hold until the model's next pass. At most kMostRows parts; `positions`: of those, and better of all to come.
  std::vector<const float*> run(Model& model, const Network& network, const Bank* bank, const KvCache& cache, const std::vector<Continuation>& parts,
                                const std::vector<device::SampleRow>& draws, int64_t positions, const Cancel& cancel);

  // What the last step drew: fetched, then found by the row of logits that run() gave.
  void fetch();
  int32_t token(const float* logits) const { return fetched_[place(logits)]; }
  float logp(const float* logits) const;

  int64_t replayed() const { return replayed_; }  // steps
  // The number of rows that steps of so many have.
  static int64_t filled_up(int64_t rows);

 private:
  class Step;
  size_t place(const float* logits) const { return size_t((logits - logits_) / vocabulary_); }

  Device device_;
  std::map<std::pair<int64_t, bool>, std::unique_ptr<Step>> steps_;  // by rows, and whether adapters take part
  const Model* model_ = nullptr;  // whose steps these are
  uint64_t bank_ = 0;             // its id, 0: none
  DeviceBuffer drawn_{"tokens"};  // of the last step: tokens [rows], log-probabilities [rows]
  const float* logits_ = nullptr;
  int64_t rows_ = 0, vocabulary_ = 0, replayed_ = 0;
  std::vector<int32_t> fetched_;
};

}  // namespace pluralign
