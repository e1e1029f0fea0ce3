// Dense products by our own kernels: plain, one thread to an element of C.
#include "cuda/context.h"

namespace pluralign::cuda {
namespace {

template <class T, class C>
__global__ void product_kernel(int64_t m, int64_t n, int64_t k, const T* a, const T* b, C* c, int64_t a_row, int64_t a_k, int64_t b_column, int64_t b_k, int64_t ldc, float alpha,
                               const float* bias, int accumulate) {
  const int64_t j = int64_t(blockIdx.x) * blockDim.x + threadIdx.x, i = int64_t(blockIdx.y) * blockDim.y + threadIdx.y;
  if (i >= m || j >= n) return;
  float sum = 0;
  for (int64_t p = 0; p < k; ++p) sum += load(a[i * a_row + p * a_k]) * load(b[j * b_column + p * b_k]);
  C* to = c + i * ldc + j;
  sum *= alpha;
  if (bias) sum += bias[j];
  if (accumulate) sum += load(*to);
  store(to, sum);
}

template <class T, class C>
void start(Context& context, const Product& p) {
  constexpr int64_t kMostRows = int64_t(65535) * 8;
  const int64_t a_row = p.a_transposed ? 1 : p.lda;
  for (int64_t i = 0; i < p.m; i += kMostRows) {
    const int64_t m = std::min(kMostRows, p.m - i);
    PLURALIGN_LAUNCH((product_kernel<T, C>), dim3(unsigned(ceil_div(p.n, 32)), unsigned(ceil_div(m, 8))), dim3(32, 8), 0, context.stream, m, p.n, p.k,
                     static_cast<const T*>(p.a) + i * a_row, static_cast<const T*>(p.b), static_cast<C*>(p.c) + i * p.ldc, a_row, p.a_transposed ? p.lda : 1, p.b_transposed ? p.ldb : 1,
                     p.b_transposed ? 1 : p.ldb, p.ldc, p.alpha, p.bias, int(p.accumulate));
  }
}

}  // namespace

void own_product(Context& context, const Product& p) {
  if (p.m <= 0 || p.n <= 0) return;
  if (p.a_type != p.b_type || (p.a_type != DType::f32 && p.a_type != DType::bf16) || (p.c_type != DType::f32 && p.c_type != DType::bf16))
    throw Failure(device::Status::bad_argument, "a product of these types");
  const bool half = p.a_type == DType::bf16, half_out = p.c_type == DType::bf16;
  if (half) half_out ? start<bf16, bf16>(context, p) : start<bf16, float>(context, p);
  else half_out ? start<float, bf16>(context, p) : start<float, float>(context, p);
  context.check("product");
}

}  // namespace pluralign::cuda
