// What the kernels of low-rank products share: rows by adapter, and dropout's masks.
#pragma once
#include <map>
#include <utility>
#include <vector>

#include "cuda/context.h"
#include "ops/gemm/tile.cuh"
#include "ops/lora/lora.h"

namespace pluralign::cuda {

constexpr int kLoraThreads = 128, kTileRows = 64;

// One linear layer of a call. What is summed over a width in several stretches stands in `sums`, [stretches × rows × ld], before
// it is h or dc; with one stretch it stands there at once.
struct LoraPart {
  const LoraModule* modules;
  int64_t out, ldy, stretches, ld;
  uint64_t stream;
  const float* dy;  // [rows × ldy]
  void* y;
  float* sums;
  float* h;       // [rows × h_stride]: x Aᵀ
  float* middle;  // [rows × stride]: core · h, of modules with a core
  float* dc;      // [rows × stride]: scale · dy B
  float* low;     // [rows × stride]: gradient of h, of modules with a core
};

// What all kernels of one call know.
struct Lora {
  const struct RowTile* tiles;
  const device::PlanRun* runs;
  const uint64_t* row_keys;
  int64_t rows, run_count, in, h_stride, stride, stretch;  // stride: the largest rank, rounded up; stretch: of a width
  const void* x;  // [rows × in]
  int count;
  LoraPart part[device::kMostParts];
};

// Up to kTileRows rows of one adapter.
struct RowTile {
  int64_t row;
  int32_t rows, adapter;
};

__device__ inline uint64_t mix(uint64_t x) {  // splitmix64's finaliser, as in lora.cc
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Dropout's factors of rows from `row` on: those of lora.cc (Task::drop), to the bit.
struct Drop {
  const uint64_t* row_keys;  // of the first row; null: nothing is dropped
  uint64_t stream, threshold;
  float scale;
  __device__ float operator()(int64_t row, int64_t column) const { return of(key(row), column); }
  __device__ uint64_t key(int64_t row) const { return mix(row_keys[row] ^ mix(stream)); }
  __device__ float of(uint64_t key, int64_t column) const { return (mix(key + uint64_t(column)) & 0xffffffffull) < threshold ? scale : 0.f; }
};
__device__ inline Drop drop_of(const LoraModule& m, uint64_t stream, const uint64_t* row_keys, int64_t row) {
  const bool drops = m.dropout > 0.f && stream != 0;
  const float keep = 1.f - m.dropout;
  return {drops ? row_keys + row : nullptr, stream, drops ? uint64_t(double(keep) * 4294967296.0) : 0, drops ? 1.f / keep : 1.f};
}

// Rows of x, dropped where they are: lines are rows, and columns begin at `column`.
template <class T, class S>
struct DroppedSource {
  Source<T, S> from;
  Drop drop;
  int64_t column;
  __device__ uint4 operator()(int line, int first) const {
    if (!drop.row_keys || line >= from.lines) return from(line, first);
    float v[kChunk<T>];
    load_floats(v, from.at + int64_t(line) * from.ld + first, from.length - first, from.aligned);
    const uint64_t key = drop.key(line);
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) v[i] *= drop.of(key, column + first + i);
    return pack_chunk(v);
  }
};

// Rows times a factor.
template <class T, class S>
struct ScaledSource {
  Source<T, S> from;
  float scale;
  __device__ uint4 operator()(int line, int first) const {
    float v[kChunk<T>];
    load_floats(v, from.at + int64_t(line) * from.ld + first, line < from.lines ? from.length - first : 0, from.aligned);
#pragma unroll
    for (int i = 0; i < kChunk<T>; ++i) v[i] *= scale;
    return pack_chunk(v);
  }
};

// Rows of all runs whose modules share one factor, in rows [begin, end) of the plan, a stretch of one run at a time, ascending.
// Every thread of the block calls the same functions; `room`: shared memory for one word of each warp.
template <class Factor>
class SharingRows {
 public:
  __device__ SharingRows(const device::PlanRun* runs, int64_t count, const LoraModule* modules, Factor factor, int64_t self, int64_t begin, int64_t end, uint32_t* room)
      : runs_(runs), count_(count), modules_(modules), factor_(factor), begin_(begin), end_(end), room_(room) {
    const int adapter = runs[self].adapter;
    mine_ = adapter < 0 || modules[adapter].r <= 0 ? nullptr : factor(modules[adapter]);
    base_ = -int64_t(blockDim.x);
    first_ = mine_ != nullptr && run() == self;
    base_ = -int64_t(blockDim.x);  // from the beginning again
    bits_ = 0;
    word_ = kWarps;
  }
  // Whether `self` is the first run with its factor, so that its block adds up the gradient.
  __device__ bool leads() const { return first_; }
  // Up to `most` rows of one run; false where there are no more.
  __device__ bool next(int64_t most, int64_t& row, int64_t& rows, int& adapter) {
    while (at_ >= to_) {
      const int64_t u = run();
      if (u < 0) return false;
      at_ = runs_[u].row > begin_ ? runs_[u].row : begin_;
      to_ = runs_[u].row + runs_[u].rows < end_ ? runs_[u].row + runs_[u].rows : end_;
      adapter_ = runs_[u].adapter;
    }
    row = at_;
    rows = to_ - at_ < most ? to_ - at_ : most;
    adapter = adapter_;
    at_ += rows;
    return true;
  }

 private:
  static constexpr int kWarps = kLoraThreads / kWarp;
  // The next run that shares the factor, or -1.
  __device__ int64_t run() {
    for (;;) {
      for (; word_ < kWarps; ++word_) {
        if (!bits_) bits_ = room_[word_];
        if (bits_) {
          int bit = 0;
          while (!(bits_ >> bit & 1)) ++bit;
          bits_ &= bits_ - 1;
          const int64_t found = base_ + word_ * kWarp + bit;
          if (!bits_) ++word_;
          return found;
        }
      }
      base_ += blockDim.x;
      if (base_ >= count_) return -1;
      __syncthreads();
      const int64_t u = base_ + threadIdx.x;
      bool same = false;
      if (u < count_ && runs_[u].adapter >= 0) {
        const LoraModule& m = modules_[runs_[u].adapter];
        same = m.r > 0 && factor_(m) == mine_;
      }
      const unsigned found = __ballot_sync(kAllLanes, same);
      if (threadIdx.x % kWarp == 0) room_[threadIdx.x / kWarp] = found;
      __syncthreads();
      word_ = 0;
    }
  }

  const device::PlanRun* runs_;
  int64_t count_;
  const LoraModule* modules_;
  Factor factor_;
  int64_t begin_, end_, base_ = 0, at_ = 0, to_ = 0;
  float* mine_ = nullptr;
  bool first_ = false;
  int word_ = kWarps, adapter_ = 0;
  uint32_t bits_ = 0, *room_;
};

// Ranks of modules on rows of a plan, and what of them is trained.
struct LoraRanks {
  int64_t most = 0, core = 0;  // core: of those with one
  bool factors = false, vector = false, matrix = false;
};

// ---- host (cuda_tiles.cu)

// Tiles of rows by adapter, made at a plan's first call. A standing plan has one for each row, those that it does not need
// without rows.
struct RowTiles : Plan::Schedule {
  RowTiles(Context& context, const Plan& plan);
  ~RowTiles() override;
  void renew(const Plan& plan) override;
  Context* context;
  RowTile* tiles = nullptr;
  int64_t count = 0;
  std::vector<RowTile> list;                                                // as the device has it
  std::map<std::pair<const LoraModule*, int32_t>, LoraRanks> ranks;  // of a standing plan: by a linear's modules
};
RowTiles& row_tiles(Context& context, const Plan& plan);

// Of the modules in a call that the plan's rows go through; of a standing plan, that they may go through: ranks alone then.
LoraRanks lora_ranks(Context& context, const device::LinearCall& call);

// cuda_factors.cu: adds to the gradients of A, B and cores, given dc, low and middle.
void lora_factors(Context& context, const Lora& c, const LoraRanks& ranks, int storage);

}  // namespace pluralign::cuda
