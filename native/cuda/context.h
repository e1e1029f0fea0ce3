// What the operators of the CUDA library run in. An operator is a host function that queues kernels on the context's stream;
// it takes scratch memory by slot, never allocates otherwise, and never waits. Errors are thrown as Failure inside the library
// and become a status at its border (library.cu).
#pragma once
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device.cuh"
#include "device/operators.h"

namespace pluralign::cuda {

struct Failure : std::runtime_error {
  Failure(device::Status s, const std::string& text) : std::runtime_error(text), status(s) {}
  device::Status status;
};

// Scratch memory of operators; a slot holds its contents until the next operator that names it. Work on one stream happens in
// order, so operators may share slots with others but not within one.
enum Slot { kSlotA, kSlotB, kSlotC, kSlotD, kSlotE, kSlotF, kSlotProductA, kSlotProductB, kSlotProductWork, kSlots };

class Products;  // cuda/products.h

}  // namespace pluralign::cuda

// Completes the opaque types of device/operators.h.
namespace pluralign::device {

// A graph of what was queued, and when it was begun: memory that was there then must still be there.
struct Recording {
  cudaGraphExec_t graph = nullptr;
  uint64_t begun = 0;
  bool stale = false;
};

struct Context {
  Context(int ordinal, int64_t limit);
  ~Context();
  Context(const Context&) = delete;

  // At least `bytes` of device memory; contents are lost when it grows. Throws Failure(out_of_memory).
  void* scratch(cuda::Slot slot, size_t bytes);
  template <class T>
  T* scratch(cuda::Slot slot, int64_t count) { return static_cast<T*>(scratch(slot, size_t(count > 0 ? count : 1) * sizeof(T))); }

  void* allocate(size_t bytes, const char* purpose);
  bool release(void* at);  // whether it was held
  // Small memory that comes and goes with every pass: given back it waits for the next, in the stream's order, and the device is
  // not waited for. Sizes are rounded up to powers of two.
  void* borrow(size_t bytes, const char* purpose);
  void give_back(void* at);
  // Copies through pinned memory; `host` may be reused at once.
  void upload(void* to, const void* host, size_t bytes);

  // cuda/recording.cu; contracts in device/operators.h. Where `PLURALIGN_CUDA_GRAPHS` is not 1, none begins.
  void begin_recording();
  std::unique_ptr<Recording> end_recording(bool keep);  // null where it is not kept, or none is under way
  Status replay(Recording& recording);
  void drop(std::unique_ptr<Recording> recording);
  bool recording() const { return under_way_ != nullptr; }
  // Throws Failure(unsupported) while a recording is under way.
  void not_recorded(const char* what) const;

  // After launches: throws Failure where one was refused. Kernels that fail while they run are found by the next fetch.
  void check(const char* what);
  // The error of a call to the runtime, as a Failure. Sticky ones mark the context lost.
  void check(cudaError_t error, const char* what);

  int ordinal = 0, multiprocessors = 0, capability = 0;  // 90 for sm_90
  size_t most_shared = 0;                                // bytes of shared memory that one block can have
  cudaStream_t stream = nullptr;
  std::unique_ptr<cuda::Products> products;
  std::string message;
  bool lost = false;
  std::atomic<int64_t> users{1};  // memory and plans that were given out, and whoever opened it

 private:
  void close();
  struct Scratch {
    void* at = nullptr;
    size_t bytes = 0;
  };
  Scratch scratch_[cuda::kSlots];
  struct Block {
    size_t bytes;
    uint64_t born;
  };
  std::mutex mutex_;  // of what is held and recorded: memory is released on any thread
  std::map<void*, Block> held_;
  uint64_t clock_ = 0;  // counts allocations and recordings
  std::set<Recording*> recordings_;
  std::unique_ptr<Recording> under_way_;
  std::vector<void*> released_meanwhile_;  // CUDA frees nothing during a recording
  bool records_ = false;
  int64_t limit_ = 0, total_ = 0;
  std::map<size_t, std::vector<void*>> spare_;  // what was given back, by size
  // Pinned memory that uploads pass through, one half while the other is on its way.
  char* staging_ = nullptr;
  cudaEvent_t gone_[2]{};  // when what a half held last has gone
  int half_ = 0;
  friend struct Table;
  friend device::Status memory_of(Context*, Memory*);
};

// A plan with its arrays on the host and, in one allocation, on the device. Operators that need a schedule of their own (tiles
// of attention, chunks of adapters) make it at their first call and keep it here.
struct Plan {
  struct Schedule {
    virtual ~Schedule() = default;
    virtual void renew(const Plan&) {}  // a standing plan has other contents
  };
  PlanArrays host, on_device;
  void* memory = nullptr;
  std::map<std::string, std::unique_ptr<Schedule>> schedules;  // by operator; freed with the plan
};

}  // namespace pluralign::device

namespace pluralign::cuda {

using device::Context;
using device::Plan;
using device::PlanArrays;

inline int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }
// A grid in x; the largest there is has 2³¹ - 1 blocks.
inline dim3 blocks(int64_t n) { return dim3(unsigned(n)); }

// Raises a kernel's limit of dynamic shared memory where it asks for more than 48 KiB. Cheap enough for every launch.
template <class Kernel>
void allow_shared(Context& context, Kernel kernel, size_t bytes) {
  if (bytes > 48 * 1024) context.check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)), "shared memory");
}

// ---- the operators, one file each; contracts in device/operators.h. Sizes may be zero: an operator then queues nothing.
void embed(Context&, const device::EmbedCall&);
void embed_backward(Context&, const device::EmbedBackwardCall&);
void norm(Context&, const device::NormCall&);
void norm_backward(Context&, const device::NormBackwardCall&);
void rope(Context&, const device::RopeCall&);
void rope_backward(Context&, const device::RopeCall&);
void attention(Context&, const device::AttentionCall&);                    // ops/attention/cuda_forward.cu
void attention_cached(Context&, const device::CachedAttentionCall&);
void attention_backward(Context&, const device::AttentionBackwardCall&);   // ops/attention/cuda_backward.cu
void linear(Context&, const device::LinearCall&);                          // ops/linear/cuda.cu, by product() and lora
void linear_backward(Context&, const device::LinearCall&);
void swiglu(Context&, const device::SwigluCall&);
void swiglu_backward(Context&, const device::SwigluCall&);
void gather(Context&, const device::GatherCall&);
void gather_backward(Context&, const device::GatherCall&);
void head(Context&, const device::HeadCall&);                              // ops/head/cuda.cu
void head_backward(Context&, const device::HeadCall&);
void reward(Context&, const device::RewardCall&);
void reward_backward(Context&, const device::RewardCall&);
void adamw(Context&, const device::AdamWCall&);
void sample(Context&, const device::SampleCall&);
void squared_norms(Context&, const device::SquaredNormsCall&);            // likewise in ops/adamw/cuda.cu

// ---- parts of operators

// ops/lora/cuda.cu: what adapters add to every part of a linear layer that has modules, after the dense products. Forward
// writes the parts' h and adds to their y; backward adds to dx (where not null: its rows are there already) and to da, db, dcore
// of every module on rows of the plan, which may share factors. With storage kBf16 operands may be rounded to bfloat16; h and
// sums stay float32. Rows whose module has r = 0 are left alone. LoraModule: ops/lora/lora.h.
void lora(Context&, const device::LinearCall&);
void lora_backward(Context&, const device::LinearCall&);

// ops/gemm/cuda.cu: C[m × n] = alpha · op(A) op(B) + bias (of the columns) + C where `accumulate`. op(A) is [m × k], op(B)
// [k × n]; a transposed operand is stored [k × m] or [n × k]. Products of two bfloat16 operands run on tensor cores, of two
// float32 operands in float32 proper (no TF32); mixed ones are refused. C may be either. Any alignment, any size; k = 0: zeros
// and bias.
struct Product {
  int64_t m, n, k;
  const void *a, *b;
  DType a_type, b_type, c_type;
  bool a_transposed, b_transposed;
  int64_t lda, ldb, ldc;  // elements from one stored row to the next
  void* c;
  float alpha;
  const float* bias;  // [n] or null
  bool accumulate;
};
void own_product(Context&, const Product&);  // ops/gemm/cuda.cu: the fallback where there is no cuBLASLt
void product(Context&, const Product&);      // cuda/products.cu: through cuBLASLt where it is there; for every operator

}  // namespace pluralign::cuda
