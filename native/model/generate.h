// Generation by continuous batching: sequences wait until there is room, run side by side under policies of their own, and
// leave as they end. What a sequence says depends on its own request alone.
#pragma once
#include <bit>
#include <cstdint>
#include <deque>
#include <set>

#include "kv_cache.h"
#include "model.h"
#include "ops/sample/sample.h"
#include "standing.h"

namespace pluralign {

struct SequenceRequest {
  struct Member {
    int adapter;  // -1: the base
    float weight;
  };
  std::vector<int32_t> prompt;
  std::vector<Member> members;  // one policy, or several whose logits are mixed; weights add up to 1
  Mix mix = Mix::reverse_kl;
  double alpha = 1;
  int64_t max_new_tokens = 0;
  uint32_t seed = 0;
  SampleOptions sampling;
};

// What a run added to one sequence.
struct SequenceOutput {
  int64_t id;
  std::vector<int32_t> tokens;
  std::vector<float> logps;  // see Sample
  bool finished;
};

class Generation {
 public:
  struct Limits {
    int64_t rows;    // policies' sequences that run at a time
    int64_t memory;  // bytes of keys and values; negative: what a device has to spare
  };
  // `host` chooses the tokens, wherever the model runs; on the CPU the device is the host's.
  Generation(const Model& model, Context& host, const Device& device, Limits limits, std::vector<int32_t> stop_tokens);

  // Queues a sequence under a new id. Throws BAD_ARGUMENT where the request is malformed, OUT_OF_MEMORY where it alone is
  // over the limit, saying what it needs.
  void add(int64_t id, SequenceRequest request, int adapters);
  // Ends a sequence, waiting or running.
  void remove(int64_t id);
  // Steps so far that a device replayed, of all that it ran.
  int64_t replayed() const { return standing_ ? standing_->replayed() : 0; }
  int64_t left() const { return int64_t(active_.size() + waiting_.size()); }

  // At most `steps` tokens for each running sequence, admitting others as there is room; ends early when nothing is left.
  // An error leaves the generation unusable. The bank's factors must not change as long as sequences are left.
  std::vector<SequenceOutput> run(Model& model, const Bank* bank, int64_t steps, const Cancel& cancel);

 private:
  struct Sequence {
    int64_t id;
    SequenceRequest request;
    std::vector<int> slots;       // of each member
    std::vector<int32_t> seen;    // ids for the repetition penalty, each once
    std::vector<uint8_t> is_seen;
    int64_t written = 0;          // new tokens
    int64_t fed = 0;              // tokens whose keys are held
    int32_t last = 0;             // the newest token, not yet fed
    size_t output = SIZE_MAX;     // its place in what the run in hand gives
  };

  using Rows = std::vector<std::vector<const float*>>;  // of each sequence, the logits of each member, where the model runs
  void admit(std::vector<size_t>& fresh);
  Rows prefill(Model& model, const Network& network, const Bank* bank, const std::vector<size_t>& fresh, const Cancel& cancel);
  // With a lane, on the calling thread alone.
  Rows step(Model& model, const Network& network, const Bank* bank, const std::vector<size_t>& running, const Cancel& cancel, Lane* lane = nullptr);
  // So many steps, each thread with sequences of its own: nobody waits for the others before they are done.
  void steps_apart(Model& model, const Network& network, const Bank* bank, std::vector<size_t> running, int64_t lanes, int64_t steps, const Cancel& cancel);
  int64_t rows_of(const std::vector<size_t>& which) const;
  // Holds the adapters of running sequences as steps read them.
  void pack_adapters(const Model& model, const Bank* bank);
  // Takes the factors of adapters that sequences run under to the device, each once for as long as sequences are left.
  void bring(const Bank* bank);
  // `thread`: the calling one, where the context is that of a lane.
  void choose(Context& context, const std::vector<size_t>& which, Rows rows, int thread = 0);
  // Whether a device draws the sequence's next token by itself, and how.
  bool is_drawn_there(const Sequence& sequence) const;
  device::SampleRow draw_of(const Sequence& sequence, const float* logits) const;
  // Of rows on a device other than the CPU: draws what the device can by itself, fetches the rows of the others and gives their
  // places in `which`.
  std::vector<size_t> draw_there(const std::vector<size_t>& which, Rows& rows, std::vector<Sample>& drawn);
  bool is_done(const Sequence& sequence) const;

  ModelConfig config_;
  Context& host_;
  const Device device_;
  KvCache cache_;
  PackedAdapters packed_;
  Limits limits_;
  std::vector<int32_t> stop_;
  std::deque<Sequence> waiting_;
  std::vector<Sequence> active_;
  std::vector<SampleScratch> scratch_;  // of each thread
  std::vector<Buffer> mixed_;
  Buffer logits_, first_logits_, fetched_;
  DeviceBuffer drawn_{"tokens"};
  std::unique_ptr<StandingSteps> standing_;  // on a device other than the CPU
  bool stood_ = false;                       // whether the rows in hand come from there, drawn already
  std::set<int> brought_;
  std::vector<SequenceOutput> out_;
};

}  // namespace pluralign
