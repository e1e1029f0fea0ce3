// Rows by index on the GPU: token embeddings, and the rows that are read out. What several rows add to, one thread adds up in
// the rows' order.
#include "cuda/context.h"

namespace pluralign::cuda {
namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void embed_kernel(float* x, const T* table, const int32_t* tokens, int64_t width, int64_t ld) {
  const int64_t row = blockIdx.x, from = int64_t(tokens[row]) * ld;
  for (int64_t i = threadIdx.x; i < width; i += blockDim.x) x[row * width + i] = load(table[from + i]);
}

__global__ void embed_backward_kernel(float* dtable, const float* dx, const int32_t* tokens, int64_t rows, int64_t width) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= width) return;
  for (int64_t r = 0; r < rows; ++r) dtable[int64_t(tokens[r]) * width + i] += dx[r * width + i];
}

__global__ void gather_kernel(float* to, const float* from, const int32_t* rows, int64_t width) {
  const int64_t i = blockIdx.x, row = rows[i];
  for (int64_t j = threadIdx.x; j < width; j += blockDim.x) to[i * width + j] = from[row * width + j];
}

// A row that is read more than once is added to by the block of its first reader.
__global__ void gather_backward_kernel(float* from, const float* to, const int32_t* rows, int64_t readouts, int64_t width) {
  const int64_t first = blockIdx.x;
  const int32_t row = rows[first];
  if (first > 0 && rows[first - 1] == row) return;
  int64_t end = first + 1;
  while (end < readouts && rows[end] == row) ++end;
  for (int64_t j = threadIdx.x; j < width; j += blockDim.x) {
    float sum = from[row * width + j];
    for (int64_t i = first; i < end; ++i) sum += to[i * width + j];
    from[row * width + j] = sum;
  }
}

}  // namespace

void embed(Context& context, const device::EmbedCall& c) {
  const PlanArrays& p = c.plan->on_device;
  if (p.rows <= 0) return;
  if (c.table.type == DType::f32)
    PLURALIGN_LAUNCH(embed_kernel, blocks(p.rows), kThreads, 0, context.stream, c.x, static_cast<const float*>(c.table.data), p.tokens, c.table.cols, c.table.ld);
  else if (c.table.type == DType::bf16)
    PLURALIGN_LAUNCH(embed_kernel, blocks(p.rows), kThreads, 0, context.stream, c.x, static_cast<const bf16*>(c.table.data), p.tokens, c.table.cols, c.table.ld);
  else
    throw Failure(device::Status::bad_argument, "an embedding of this type");
  context.check("embed");
}

void embed_backward(Context& context, const device::EmbedBackwardCall& c) {
  const PlanArrays& p = c.plan->on_device;
  if (p.rows <= 0) return;
  PLURALIGN_LAUNCH(embed_backward_kernel, blocks(ceil_div(c.width, kThreads)), kThreads, 0, context.stream, c.dtable, c.dx, p.tokens, p.rows, c.width);
  context.check("embed");
}

void gather(Context& context, const device::GatherCall& c) {
  const PlanArrays& p = c.plan->on_device;
  if (p.readouts <= 0) return;
  PLURALIGN_LAUNCH(gather_kernel, blocks(p.readouts), kThreads, 0, context.stream, c.to, c.from, p.read_rows, c.width);
  context.check("gather");
}

void gather_backward(Context& context, const device::GatherCall& c) {
  const PlanArrays& p = c.plan->on_device;
  if (p.readouts <= 0) return;
  PLURALIGN_LAUNCH(gather_backward_kernel, blocks(p.readouts), kThreads, 0, context.stream, c.from, c.to, p.read_rows, p.readouts, c.width);
  context.check("gather");
}

}  // namespace pluralign::cuda
