// The seam between model code and devices: one versioned table of C functions on plain structures. The CPU fills it from
// ops/ (cpu.cc), a CUDA library from its kernels (native/cuda). Model code is written once over it.
//
// Every pointer in an argument is the device's memory unless it is called `host`. Work is queued on the context's stream in
// the order of the calls; only `fetch` and `synchronize` wait, and only `fetch` hands values to the host. Matrices are row
// major; `storage` is the type of activations (kF32 or kBf16, ops/table.h), everything else is float32 unless typed. Sums are
// in float32 or better, in an order that depends on shapes alone: runs repeat to the bit. No entry throws across the
// library's border: a status comes back, and `message` says what happened.
#pragma once
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace pluralign {
struct LoraModule;
}

namespace pluralign::device {

constexpr uint32_t kVersion = 5;

enum class Status : int32_t {
  ok = 0,
  bad_argument = 1,
  unsupported = 2,
  out_of_memory = 3,  // nothing was queued; the context goes on
  device_lost = 4,    // a sticky error: the process must end before the device can be used again
  non_finite = 5,
  failed = 6,
  stale = 7,  // a recording over memory that has been released since: nothing was queued
};

struct Context;    // one opened device: its stream, its scratch memory, what it has cached
struct Plan;       // a packed batch as the device holds it
struct Recording;  // operators that were queued once, to be queued again by one call

struct PlanSpan {
  int64_t row, rows;
};
// Queries [row, row + rows) follow each other on one path; `spans` stretches of rows from the root on, its own last, hold
// their keys. Query i has position prefix + i and sees positions up to its own.
struct PlanNode {
  int64_t row, rows, prefix, first_span, spans;
};
struct PlanRun {  // rows of one adapter, -1: of none
  int64_t row, rows;
  int32_t adapter, reserved;
};
// How a row of logits becomes the next token: as ops/sample/sample.h draws it where it cuts and penalises nothing.
struct SampleRow {
  const float* logits;  // [vocabulary]
  double u;             // sample_place of the sequence
  float scale;          // 1 / temperature; 1 where greedy
  int32_t greedy;
};
// A packed batch (model/plan.h). Nodes of tree t are tree_nodes[tree_starts[t]] … tree_nodes[tree_starts[t + 1] - 1]; no two
// trees share rows. A node's keys are its ancestors' and its own rows.
struct PlanArrays {
  int64_t rows, nodes, spans, trees, runs, readouts;
  int64_t longest;            // positions on the longest path
  const int32_t* tokens;      // [rows]
  const int32_t* positions;   // [rows]
  const uint64_t* row_keys;   // [rows], seeds of dropout
  const PlanNode* node;       // [nodes], a parent before its children, ascending rows
  const PlanSpan* span;       // [spans]
  const int32_t* tree_starts; // [trees + 1]
  const int32_t* tree_nodes;  // [nodes]
  const PlanRun* run;         // [runs], ascending rows, covering all
  const int32_t* read_rows;   // [readouts], ascending, may repeat
  const int32_t* targets;     // [readouts], tokens
  const SampleRow* draws = nullptr;  // [readouts], or null
  // Not 0: a step of generation that renew_plan gives other contents of the same sizes. What is launched over it depends on
  // those sizes and on the calls alone. Row i is all that node i has, or node i has none; runs may have no rows; without
  // rows of a node, a row is computed for nothing and its keys go nowhere.
  int64_t standing = 0;
};

// A matrix: element (i, j) at data[i * ld + j].
struct View {
  void* data;
  DType type;
  int32_t reserved;
  int64_t rows, cols, ld;
};

struct EmbedCall {  // x[i] = table[tokens[i]], as float32 [rows × cols of table]
  const Plan* plan;
  View table;
  float* x;
};
struct EmbedBackwardCall {  // dtable[tokens[i]] += dx[i], rows in ascending order
  const Plan* plan;
  const float* dx;
  float* dtable;
  int64_t width, vocabulary;
};

struct NormCall {  // ops/norm/norm.h
  int64_t rows, width;
  const float *x, *weight;
  void* y;  // [rows × width] in storage
  float* rstd;
  int32_t storage;
  float eps;
};
struct NormBackwardCall {  // dx (+)= …; dweight (may be null) += …
  int64_t rows, width;
  const float *dy, *x, *rstd, *weight;
  float *dx, *dweight;
  int32_t accumulate, reserved;
};

struct RopeCall {  // ops/rope/rope.h; table [positions × 2 · head_dim / 2]: cosines, then sines, of each position
  const Plan* plan;
  int64_t heads, kv_heads, head_dim;
  const float *q_norm, *k_norm;  // [head_dim] or null
  float eps;
  int32_t storage;
  const float* table;
  const void* raw;  // [rows × (heads + 2 kv_heads) · head_dim] in storage
  float* out;       // forward: likewise, float32. backward: gradient of it, which becomes that of raw
  float *dq_norm, *dk_norm;  // backward: += gradient, or null
};

// ops/attention/attention.h over the plan. qkv: [rows × stride] float32, stride = (heads + 2 kv_heads) · head_dim, queries,
// then keys, then values of all heads. out [rows × heads · head_dim] in storage. Softmax over a node's path, in float32.
// `lse` [rows × heads]: what the forward pass keeps for the backward pass (the CPU keeps nothing); may be null where none is to come.
struct AttentionCall {
  const Plan* plan;
  int64_t heads, kv_heads, head_dim, window;  // window 0: none
  float scale;
  int32_t storage;
  const float* qkv;
  void* out;
  float* lse;
};
// Rows that continue sequences whose keys and values are held: a node has one span, of rows of `cache`, and its own rows are the
// last of them. Their keys and values are put there first. cache: [rows × 2 kv_heads · kept] in storage, keys, then values of all
// heads; `kept` is head_dim rounded up to 64 or 128. No gradient: `lse` is null.
struct CachedAttentionCall {
  AttentionCall forward;
  void* cache;
};
// dqkv [rows × stride] float32 is written whole: gradients of queries, keys and values (of all nodes that see them).
// `out` and `lse` are those of the forward pass.
struct AttentionBackwardCall {
  AttentionCall forward;
  const float* dout;  // [rows × heads · head_dim]
  float* dqkv;
};

// Linear layers that share x [rows × in] (in storage): y = x Wᵀ + bias + scale · core(dropout(x) Aᵀ) Bᵀ for the rows of each
// run's adapter (ops/linear, ops/lora). modules[adapter] has r = 0 where the adapter leaves this linear alone.
struct LinearPart {
  int64_t out;
  View weight;             // [out × in]; without data in every part: adapters alone, which add to y and dx (not on the CPU)
  const void* packed;      // the device's own form of the weight (CPU: PackedOperand), or null
  const float* bias;       // [out] or null
  const LoraModule* modules;       // [adapters], or null: none at all
  const LoraModule* host_modules;  // the same on the host, to plan launches by
  float* h;                // [rows × h_stride] float32: x Aᵀ of each row, kept for the backward pass; null without modules
  void* y;                 // forward: [rows × ldy] in storage, or float32 and added to where `residual`
  const float* dy;         // backward: [rows × ldy]
  int64_t ldy;
  float *dweight, *dbias;  // backward: += gradient, or null
  uint64_t stream;         // seed of this linear's dropout; 0: nothing is dropped
};
constexpr int kMostParts = 3;
struct LinearCall {
  const Plan* plan;
  int64_t rows, in, h_stride;
  const void* x;
  int32_t storage, count;
  int32_t residual, adapters;
  LinearPart part[kMostParts];
  float* dx;  // backward: [rows × in] is written: gradient of x; null: not wanted
};

struct SwigluCall {  // ops/swiglu/swiglu.h
  int64_t rows, width;
  const void* gate_up;  // [rows × 2 width] in storage
  void* act;            // forward: [rows × width] in storage
  const float* dact;    // backward
  float* dgate_up;      // backward: written
  int32_t storage, reserved;
};

struct GatherCall {  // to[i] = from[read_rows[i]]; back: from[read_rows[i]] += to[i] in ascending i
  const Plan* plan;
  int64_t width;
  float *from, *to;  // [rows × width], [readouts × width]
};

// ops/head/head.h: log softmax(scale · hidden · weightᵀ) at targets, never storing all logits. partition [readouts × 2]
// float64: maximum and Σ e^(x - maximum) of each row. squares (may be null): Σ_v p_v².
struct HeadCall {
  const Plan* plan;
  View hidden;  // [readouts × width] in storage
  View weight;  // [vocabulary × width]
  const void* packed;
  float scale;
  int32_t reserved;
  float* logps;
  double* partition;
  float* squares;
  const float* dlogps;  // backward
  float* dhidden;       // backward: [readouts × width] is written. Forward, where not null: room for what backward, which follows
                        // with the same, may want of it
  float* dweight;       // backward: += gradient, or null
};

// Rewards: out[i] = heads[adapter of the row that readout i reads] · hidden[i]. readout_adapters [readouts].
struct RewardCall {
  const Plan* plan;
  View hidden;
  const float* const* heads;  // [adapters] of [width], null where an adapter has none (not read then)
  float* const* dheads;       // backward: += dout · hidden, readouts in ascending order (adapters may share a head)
  const int32_t* readout_adapters;
  float* out;
  const float* dout;    // backward
  float* dhidden;       // backward: written
  int64_t adapters;
};

// ops/adamw/adamw.h on spans [start, end) of one buffer; steps already advanced.
struct AdamWCall {
  float* p;
  const float* g;
  float *m, *v;
  int64_t spans;
  const int64_t* host_span;    // [spans × 2]
  const int32_t* host_step;    // [spans]
  const uint8_t* host_decay;   // [spans]
  double learning_rate, beta1, beta2, eps, weight_decay, grad_scale;
};

// Σ g² over each of the spans [start, end) of one buffer, in float64.
struct SquaredNormsCall {
  const float* g;
  int64_t spans;
  const int64_t* host_span;  // [spans × 2]
  double* sums;              // [spans]
};

// The next token of each row of logits; -1 where a logit is NaN or +infinity, or all are -infinity.
struct SampleCall {
  int64_t rows, vocabulary;
  const SampleRow* host_row;  // [rows], or null: those of the plan
  int32_t* tokens;            // [rows]
  float* logps;               // [rows]
  const Plan* plan = nullptr;
};

struct Options {
  int32_t ordinal, reserved;
  int64_t memory;  // bytes it may hold; 0: all there is
};
struct Memory {
  int64_t held, free, total;
};

// Entries that a device lacks are null; model code refuses what needs them.
struct Table {
  uint32_t version;  // kVersion of the headers it was built with; the rest means something only where it is ours
  uint32_t bytes;    // sizeof(Table)
  uint32_t module_bytes;  // sizeof(LoraModule) as it was built with

  // Contexts. `open` puts its message into `text` where it fails.
  Status (*open)(const Options* options, Context** out, char* text, size_t size);
  void (*close)(Context*);  // it ends once all memory and plans on it are gone too; no other call may follow
  const char* (*message)(Context*);  // of the last status that was not ok
  // A JSON object: what there is and what was chosen. May be called without a device.
  size_t (*describe)(char* text, size_t size);

  // Memory. `purpose` is a word for messages.
  Status (*allocate)(Context*, size_t bytes, const char* purpose, void** out);
  void (*release)(Context*, void*);
  Status (*memory)(Context*, Memory* out);
  Status (*upload)(Context*, void* to, const void* host, size_t bytes);  // `host` may be reused when it returns
  Status (*fetch)(Context*, void* host, const void* from, size_t bytes);
  Status (*copy)(Context*, void* to, const void* from, size_t bytes);
  Status (*zero)(Context*, void* to, size_t bytes);
  Status (*synchronize)(Context*);

  // Plans: the arrays are the caller's on the host and outlive the plan.
  Status (*make_plan)(Context*, const PlanArrays* host, Plan** out);
  void (*drop_plan)(Context*, Plan*);
  // Other contents for a standing plan, by at most two uploads; the arrays outlive it from here on.
  Status (*renew_plan)(Context*, Plan*, const PlanArrays* host);

  // Recordings. From begin_recording to end_recording operators, copies and zeros are recorded and not run; what would need
  // memory, an upload, a fetch or waiting fails with `unsupported`. A replay passes the very arguments that were recorded, so
  // what it is to see anew must lie in device memory that stays where it is: once any memory that was held when the recording
  // began is released, replay gives `stale`. A null `out` drops what was recorded. Null entries: the device cannot.
  Status (*begin_recording)(Context*);
  Status (*end_recording)(Context*, Recording** out);
  Status (*replay)(Context*, Recording*);
  void (*drop_recording)(Context*, Recording*);

  Status (*embed)(Context*, const EmbedCall*);
  Status (*embed_backward)(Context*, const EmbedBackwardCall*);
  Status (*norm)(Context*, const NormCall*);
  Status (*norm_backward)(Context*, const NormBackwardCall*);
  Status (*rope)(Context*, const RopeCall*);
  Status (*rope_backward)(Context*, const RopeCall*);
  Status (*attention)(Context*, const AttentionCall*);
  Status (*attention_backward)(Context*, const AttentionBackwardCall*);
  Status (*linear)(Context*, const LinearCall*);
  Status (*linear_backward)(Context*, const LinearCall*);
  Status (*swiglu)(Context*, const SwigluCall*);
  Status (*swiglu_backward)(Context*, const SwigluCall*);
  Status (*gather)(Context*, const GatherCall*);
  Status (*gather_backward)(Context*, const GatherCall*);
  Status (*head)(Context*, const HeadCall*);
  Status (*head_backward)(Context*, const HeadCall*);
  Status (*reward)(Context*, const RewardCall*);
  Status (*reward_backward)(Context*, const RewardCall*);
  Status (*adamw)(Context*, const AdamWCall*);
  Status (*attention_cached)(Context*, const CachedAttentionCall*);
  Status (*squared_norms)(Context*, const SquaredNormsCall*);
  Status (*sample)(Context*, const SampleCall*);
};

// The one symbol of a device library: its table, whatever its version.
using Entry = const Table* (*)();
constexpr const char* kSymbol = "pluralign_device";

}  // namespace pluralign::device
