// Products as the library asks cuBLASLt for them: what stands for it here multiplies column-major matrices as described to it,
// so that a wrong order of operands, transposition or leading dimension shows. And own_product, against the same sums.
#define PLURALIGN_EMULATE_CUDA
#include "cuda/context.h"
#include "cuda/cublaslt.h"
#include "cuda_device.h"

using namespace pluralign;
using namespace pluralign::test;

namespace {

struct Shape {
  int type;
  int64_t rows, cols, ld;
};
struct Description {
  int32_t transposed[2] = {0, 0};
};
int multiplied = 0, planned = 0;

double element(const void* data, const Shape& s, int64_t i, int64_t j) {  // column major
  const int64_t at = j * s.ld + i;
  return s.type == cuda::cublaslt::kFloat32 ? static_cast<const float*>(data)[at] : to_float(static_cast<const bf16*>(data)[at]);
}

const cuda::cublaslt::Functions kStandIn = [] {
  cuda::cublaslt::Functions f{};
  f.cublasLtGetVersion = [] { return size_t(0); };
  f.cublasLtCreate = [](void** h) { return *h = h, 0; };
  f.cublasLtDestroy = [](void*) { return 0; };
  f.cublasLtMatmulDescCreate = [](void** d, int, int) { return *d = new Description, 0; };
  f.cublasLtMatmulDescDestroy = [](void* d) { return delete static_cast<Description*>(d), 0; };
  f.cublasLtMatmulDescSetAttribute = [](void* d, int which, const void* value, size_t) { return std::memcpy(&static_cast<Description*>(d)->transposed[which == cuda::cublaslt::kTransposeB], value, 4), 0; };
  f.cublasLtMatrixLayoutCreate = [](void** l, int type, uint64_t rows, uint64_t cols, int64_t ld) { return *l = new Shape{type, int64_t(rows), int64_t(cols), ld}, ld < int64_t(rows) ? 7 : 0; };
  f.cublasLtMatrixLayoutDestroy = [](void* l) { return delete static_cast<Shape*>(l), 0; };
  f.cublasLtMatmulPreferenceCreate = [](void** p) { return *p = p, 0; };
  f.cublasLtMatmulPreferenceDestroy = [](void*) { return 0; };
  f.cublasLtMatmulPreferenceSetAttribute = [](void*, int, const void*, size_t) { return 0; };
  f.cublasLtMatmulAlgoGetHeuristic = [](void*, void*, void*, void*, void*, void*, void*, int, cuda::cublaslt::Heuristic*, int* found) { return ++planned, *found = 1, 0; };
  f.cublasLtMatmul = [](void*, void* d, const void* alpha, const void* a, void* la, const void* b, void* lb, const void* beta, const void* c, void* lc, void* out, void*,
                        const cuda::cublaslt::Algorithm*, void*, size_t, cudaStream_t) {
    const auto& t = static_cast<Description*>(d)->transposed;
    const Shape &sa = *static_cast<Shape*>(la), &sb = *static_cast<Shape*>(lb), &sc = *static_cast<Shape*>(lc);
    const int64_t k = t[0] ? sa.rows : sa.cols;
    if ((t[0] ? sa.cols : sa.rows) != sc.rows || (t[1] ? sb.rows : sb.cols) != sc.cols || (t[1] ? sb.cols : sb.rows) != k) return 7;
    for (int64_t j = 0; j < sc.cols; ++j)
      for (int64_t i = 0; i < sc.rows; ++i) {
        double sum = 0;
        for (int64_t p = 0; p < k; ++p) sum += (t[0] ? element(a, sa, p, i) : element(a, sa, i, p)) * (t[1] ? element(b, sb, j, p) : element(b, sb, p, j));
        const float value = *static_cast<const float*>(alpha) * float(sum) + (*static_cast<const float*>(beta) != 0 ? *static_cast<const float*>(beta) * float(element(c, sc, i, j)) : 0.f);
        if (sc.type == cuda::cublaslt::kFloat32) static_cast<float*>(out)[j * sc.ld + i] = value;
        else static_cast<bf16*>(out)[j * sc.ld + i] = to_bf16(value);
      }
    return ++multiplied, 0;
  };
  return f;
}();

void products_match_float64() {
  EmulatedDevice gpu;
  Random random(4);
  for (const auto& [m, n, k] : {std::tuple<int64_t, int64_t, int64_t>{1, 1, 1}, {5, 3, 7}, {17, 40, 33}, {3, 2, 0}, {0, 4, 4}})
    for (const int half : {0, 1, 2})
      for (int bits = 0; bits < 16; ++bits) {
        const bool at = bits & 1, bt = bits & 2, accumulate = bits & 4, with_bias = bits & 8;
        const int storage = half ? kBf16 : kF32, c_storage = half == 2 ? kBf16 : kF32;
        const int64_t lda = (at ? m : k) + 3, ldb = (bt ? k : n) + 2, ldc = n + 1;
        const Typed a(storage, random.normals((at ? k : m) * lda)), b(storage, random.normals((bt ? n : k) * ldb)), c(c_storage, random.normals(m * ldc));
        const std::vector<float> bias = random.normals(n);
        std::vector<double> expected = c.values;
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < n; ++j) {
            double sum = 0;
            for (int64_t p = 0; p < k; ++p) sum += a.values[size_t(at ? p * lda + i : i * lda + p)] * b.values[size_t(bt ? j * ldb + p : p * ldb + j)];
            double& to = expected[size_t(i * ldc + j)];
            to = 0.5 * sum + (with_bias ? double(bias[size_t(j)]) : 0) + (accumulate ? to : 0);
          }
        const auto on_a = gpu.take(a), on_b = gpu.take(b), on_c = gpu.take(c), on_bias = gpu.take(bias);
        const DType type = half ? DType::bf16 : DType::f32;
        cuda::product(*gpu.context(), {m, n, k, on_a.data(), on_b.data(), type, type, half == 2 ? DType::bf16 : DType::f32, at, bt, lda, ldb, ldc, on_c.data(), 0.5f,
                                       with_bias ? on_bias.floats() : nullptr, accumulate});
        CHECK_CLOSE(std::to_string(m) + " x " + std::to_string(n) + " x " + std::to_string(k) + " case " + std::to_string(bits), on_c.typed(c_storage).now(), expected,
                    half == 2 && with_bias ? 0.04 : 2e-5, half == 2 ? 0.016 : 1e-5);  // a bias on bfloat16 may be added after rounding
      }
}

}  // namespace

TEST(cuda_products_of_own_kernels_match_float64) { products_match_float64(); }

TEST(cuda_products_ask_cublaslt_for_what_they_mean) {
  emulator::cublaslt = &kStandIn;
  multiplied = planned = 0;
  products_match_float64();
  emulator::cublaslt = nullptr;
  CHECK(multiplied == 3 * 16 * 3 && planned > 0 && planned <= multiplied);
}
