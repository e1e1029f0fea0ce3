// A loaded model: scores packs, goes backward through them, generates. One call at a time.
#pragma once
#include <functional>

#include "shares.h"

namespace pluralign {

struct ScoreRequest {
  bool reward = false;  // else log-probabilities
  bool keep = false, checkpoint = false;
  uint32_t dropout_seed = 0;
  float temperature = 1;  // divides the logits of log-probabilities
};

struct GenerateRequest {
  int adapter = -1;
  int64_t max_new_tokens = 0;
  float temperature = 0, top_p = 1;
  int64_t top_k = 0;
  std::vector<uint32_t> seeds;
  std::vector<int32_t> stop_tokens;
};

class Model {
 public:
  Model(const ModelConfig& config, std::unique_ptr<Weights> weights, bool bfloat16)
      : config_(config), weights_(std::move(weights)), free_(config, bfloat16) {}

  const ModelConfig& config() const { return config_; }
  const Weights& weights() const { return *weights_; }

  // out [readouts], squares [readouts] or null; see NativeModel.score.
  void score(const Device& device, const Pack& pack, const Bank* bank, const ScoreRequest& request, float* out, float* squares, const Cancel& cancel);
  // Final hidden rows at the pack's readouts, [readouts × hidden].
  void hidden(const Device& device, const Pack& pack, const Bank* bank, float* out, const Cancel& cancel);
  // gradient [readouts]: of the scores that the last score() with keep gave.
  void backward(const Device& device, const Bank& bank, const float* gradient, int64_t count, const Cancel& cancel);
  std::vector<std::vector<int32_t>> generate(Context& host, const Device& device, const std::vector<std::vector<int32_t>>& prompts, const Bank* bank,
                                             const GenerateRequest& request, const Cancel& cancel);
  // The weights of passes over few rows, packed once. What it gives holds for as long as the bank does.
  Network prepare(const Device& device, const Bank* bank, const Cancel& cancel);
  // Runs rows that continue cached sequences and gives the logits behind each one's last row, which `logits` holds; on another
  // device than the CPU they lie there, until the next call. `packed`: the parts' adapters, for steps (see Pass). With a lane, on the calling thread alone.
  std::vector<const float*> next_logits(const Device& device, const Network& network, const Bank* bank, const PackedAdapters* packed, const KvCache& cache,
                                        const std::vector<Continuation>& parts, Buffer& logits, const Cancel& cancel, Lane* lane = nullptr);
  // On a device other than the CPU. Operators of a step over a standing plan: logits of its rows, and of each its draw: tokens
  // [rows], then log-probabilities [rows] as float32. What it uses stays where it is until a pass over more rows.
  void queue_step(const Device& device, const Network& network, const PlacedBank* bank, const KvCache& cache, const PlacedPlan& placed, float* logits, int32_t* drawn,
                  const Cancel& cancel);
  float* step_logits(const Device& device, int64_t rows) { return device_logits_.as<float>(device, rows * config_.vocabulary); }
  void reserve_positions(const Device& device, int64_t positions);
  // How many lanes share so many parts of so many rows in all; 0: threads meet in every product.
  int64_t lanes_for(const Context& context, int64_t parts, int64_t rows) const;
  void make_lanes(const Context& context, int64_t count);
  Lane& lane(int thread) { return *lanes_[size_t(thread)]; }
  int storage() const { return free_.storage(); }
  int64_t activation_bytes() const;

 private:
  // One side of a pack as shares, or as one. Shares are for models whose weights stay in a cache that threads share, and for
  // banks whose gradients may be held once more for each.
  std::vector<Plan> shares(const Device& device, const Bank* bank, Plan side) const;
  // Calls body(device, decoder, i) for every share of so many rows, side by side where there are enough for all threads. The
  // decoder is for passes that keep nothing.
  void each_share(const Device& device, const std::vector<int64_t>& rows, const std::function<void(const Device&, Decoder&, size_t)>& body);
  void read(const Pass& pass, const Decoder& decoder, const ScoreRequest& request, bool keep, Readouts& readouts, float* out, float* squares);
  device::HeadCall head_call(const Pass& pass, const Decoder& decoder, float temperature, const Readouts& readouts) const;
  device::RewardCall reward_call(const Pass& pass, const Decoder& decoder, const Readouts& readouts) const;

  ModelConfig config_;
  std::unique_ptr<Weights> weights_;
  Decoder free_;  // of rows that need no gradient
  std::vector<std::unique_ptr<Lane>> lanes_;
  DeviceBuffer device_logits_{"logits"};
  // What backward() needs of the last score() with keep: the first `parts_` shares.
  std::vector<std::unique_ptr<KeptShare>> kept_;
  size_t parts_ = 0;
  ScoreRequest request_;
  std::vector<Readouts> free_readouts_;  // of each share
  int64_t readouts_ = 0;
  uint64_t bank_ = 0;  // the bank's id, 0: none
  bool ready_ = false;

  void check(const Bank* bank);
  uint64_t checked_ = 0;  // the bank that fitted last
};

}  // namespace pluralign
