// The next token of rows of logits on the GPU, a block to a row: the host's draw (sample.cc) where nothing is cut or penalised.
// Probabilities are added up by segments in one order, so that a draw depends on its row alone.
#include <vector>

#include "cuda/context.h"

namespace pluralign::cuda {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int kSegments = 512;  // of a row; one is gone through token by token

using device::SampleRow;

// The bound names one block, else nvcc takes as few registers as four would leave, and spills.
__global__ void __launch_bounds__(kThreads, 1) sample_kernel(const SampleRow* rows, int64_t vocabulary, int32_t* tokens, float* logps) {
  SharedMemory shared;
  float* tops = shared.take<float>(kWarps);
  int64_t* places = shared.take<int64_t>(kWarps);
  double* sums = shared.take<double>(kSegments);
  const SampleRow row = rows[blockIdx.x];
  const float scale = row.scale;
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;

  // The largest, the lowest id on a tie; what is NaN or +infinity counts as larger than all.
  float top = -INFINITY;
  int64_t place = vocabulary;
  for (int64_t i = threadIdx.x; i < vocabulary; i += kThreads) {
    const float x = row.logits[i] * scale;
    const float seen = x < INFINITY ? x : INFINITY;
    if (seen > top || place == vocabulary) top = seen, place = i;
  }
  const auto take = [&](float other, int64_t at) {
    if (other > top || (other == top && at < place)) top = other, place = at;
  };
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, top, step);
    const int64_t at = __shfl_xor_sync(kAllLanes, place, step);
    take(other, at);
  }
  if (lane == 0) tops[warp] = top, places[warp] = place;
  __syncthreads();
  top = tops[0], place = places[0];
  for (int w = 1; w < kWarps; ++w) take(tops[w], places[w]);
  const bool sound = top < INFINITY && top > -INFINITY;

  const int64_t length = (vocabulary + kSegments - 1) / kSegments;
  const auto weight = [&](int64_t i) { return expf(row.logits[i] * scale - top); };
  for (int s = warp; s < kSegments; s += kWarps) {
    const int64_t begin = s * length, end = begin + length < vocabulary ? begin + length : vocabulary;
    double sum = 0;
    for (int64_t i = begin + lane; sound && i < end; i += kWarp) sum += double(weight(i));
    sum = warp_sum(sum);
    if (lane == 0) sums[s] = sum;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0;
  for (int s = 0; s < kSegments; ++s) total += sums[s];
  int64_t token = place;
  if (!row.greedy) {
    double left = row.u * total;
    int s = 0;
    while (s + 1 < kSegments && left >= sums[s]) left -= sums[s++];
    // Rounding may lead past the last token of any probability: then it is that one.
    while (s > 0 && !(sums[s] > 0)) --s;
    for (int64_t i = s * length; i < vocabulary && i < (s + 1) * length; ++i) {
      const double p = double(weight(i));
      if (p > 0) token = i;
      if ((left -= p) < 0) break;
    }
  }
  tokens[blockIdx.x] = sound ? int32_t(token) : -1;
  logps[blockIdx.x] = sound ? row.logits[token] * scale - top - logf(float(total)) : 0.f;
}

}  // namespace

void sample(Context& context, const device::SampleCall& c) {
  if (c.rows <= 0) return;
  const SampleRow* rows = c.host_row ? nullptr : c.plan->on_device.draws;
  if (c.host_row) {
    auto* uploaded = context.scratch<SampleRow>(kSlotA, c.rows);
    context.upload(uploaded, c.host_row, size_t(c.rows) * sizeof(SampleRow));
    rows = uploaded;
  }
  constexpr size_t kBytes = SharedMemory::bytes<float>(kWarps) + SharedMemory::bytes<int64_t>(kWarps) + SharedMemory::bytes<double>(kSegments);
  PLURALIGN_LAUNCH(sample_kernel, blocks(c.rows), kThreads, kBytes, context.stream, rows, c.vocabulary, c.tokens, c.logps);
  context.check("sample");
}

}  // namespace pluralign::cuda
