#include "cuda/products.h"

#ifndef PLURALIGN_EMULATE_CUDA
#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#endif

#include <array>

#include "cuda/cublaslt.h"

namespace pluralign::cuda {
namespace {

constexpr size_t kWorkspace = size_t(32) << 20;
constexpr size_t kMostPlans = 4096;

using Key = std::array<int64_t, 10>;

__global__ void bias_kernel_f32(float* c, const float* bias, int64_t count, int64_t n, int64_t ld) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) c[i / n * ld + i % n] += bias[i % n];
}
__global__ void bias_kernel_bf16(bf16* c, const float* bias, int64_t count, int64_t n, int64_t ld) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) store(c + i / n * ld + i % n, load(c[i / n * ld + i % n]) + bias[i % n]);
}

// Bytes, a power of two up to 16, that the matrix and each of its rows are aligned to.
uint32_t alignment(const void* data, int64_t ld, DType type) {
  const uint64_t bits = uint64_t(reinterpret_cast<uintptr_t>(data)) | uint64_t(ld) * dtype_size(type) | 16;
  return uint32_t(bits & (~bits + 1));
}

}  // namespace

struct Products::Library {
  cublaslt::Functions f{};
  cublaslt::Handle handle = nullptr;
  std::map<Key, cublaslt::Heuristic> plans;
};

#ifdef PLURALIGN_EMULATE_CUDA
Products::Products() : source_("own kernels (emulated)") {
  if (!emulator::cublaslt) return;
  library_ = std::make_unique<Library>();
  library_->f = *static_cast<const cublaslt::Functions*>(emulator::cublaslt);
}
Products::~Products() = default;
#else
namespace {

namespace fs = std::filesystem;

// Python's packages of NVIDIA lie in lib/python3.x/site-packages/nvidia/{cu13,cublas}/lib.
void add_python(std::vector<std::string>& paths, const fs::path& lib) {
  std::error_code none;
  for (const auto& python : fs::directory_iterator(lib, none))
    for (const char* packages : {"site-packages", "dist-packages"})
      for (const char* part : {"nvidia/cu13/lib/libcublasLt.so.13", "nvidia/cublas/lib/libcublasLt.so.13", "nvidia/cublas/lib/libcublasLt.so.12"})
        if (const fs::path at = python.path() / packages / part; fs::exists(at, none)) paths.push_back(at.string());
}

std::vector<std::string> candidates() {
  if (const char* named = std::getenv("PLURALIGN_CUBLASLT")) return {named};
  std::vector<std::string> paths{"libcublasLt.so.13", "libcublasLt.so.12", "/usr/local/cuda/lib64/libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.12"};
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* root = std::getenv(variable)) add_python(paths, fs::path(root) / "lib");
  if (const char* home = std::getenv("HOME")) add_python(paths, fs::path(home) / ".local/lib");
  for (const char* lib : {"/usr/local/lib", "/usr/lib", "/opt/conda/lib"}) add_python(paths, lib);
  return paths;
}

}  // namespace

Products::Products() {
  void* library = nullptr;
  std::string path;
  for (const std::string& candidate : candidates())
    if ((library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL))) {
      path = candidate;
      break;
    }
  if (!library) {
    source_ = "own kernels (no cuBLASLt found; PLURALIGN_CUBLASLT names one)";
    return;
  }
  auto found = std::make_unique<Library>();
  const char* missing = nullptr;
  const auto take = [&](auto*& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (!function) missing = name;
  };
#define PLURALIGN_TAKE(name) take(found->f.name, #name)
  PLURALIGN_TAKE(cublasLtGetVersion);
  PLURALIGN_TAKE(cublasLtCreate);
  PLURALIGN_TAKE(cublasLtDestroy);
  PLURALIGN_TAKE(cublasLtMatmulDescCreate);
  PLURALIGN_TAKE(cublasLtMatmulDescDestroy);
  PLURALIGN_TAKE(cublasLtMatmulDescSetAttribute);
  PLURALIGN_TAKE(cublasLtMatrixLayoutCreate);
  PLURALIGN_TAKE(cublasLtMatrixLayoutDestroy);
  PLURALIGN_TAKE(cublasLtMatmulPreferenceCreate);
  PLURALIGN_TAKE(cublasLtMatmulPreferenceDestroy);
  PLURALIGN_TAKE(cublasLtMatmulPreferenceSetAttribute);
  PLURALIGN_TAKE(cublasLtMatmulAlgoGetHeuristic);
  PLURALIGN_TAKE(cublasLtMatmul);
#undef PLURALIGN_TAKE
  if (missing) source_ = "own kernels (" + path + " has no " + missing + ")";
  else {
    source_ = "cuBLASLt " + std::to_string(found->f.cublasLtGetVersion()) + " (" + path + ")";
    library_ = std::move(found);
  }
}

Products::~Products() {
  if (library_ && library_->handle) library_->f.cublasLtDestroy(library_->handle);
}
#endif

// cuBLASLt's matrices are column major: C row major is its transpose there, Cᵀ = op(B)ᵀ op(A)ᵀ, so the operands change places
// and what was stored by rows is as it is where it was not transposed.
bool Products::run(Context& context, const Product& p) {
  if (!library_ || p.k <= 0 || p.a_type != p.b_type) return false;
  using namespace cublaslt;
  Library& l = *library_;
  const Functions& f = l.f;
  if (!l.handle && f.cublasLtCreate(&l.handle) != kSuccess) {
    library_.reset();
    source_ = "own kernels (cuBLASLt did not start)";
    return false;
  }
  const auto type = [](DType t) { return t == DType::bf16 ? kBfloat16 : kFloat32; };
  const uint32_t align[3] = {alignment(p.b, p.ldb, p.b_type), alignment(p.a, p.lda, p.a_type), alignment(p.c, p.ldc, p.c_type)};
  Descriptor d = nullptr;
  Layout a = nullptr, b = nullptr, c = nullptr;
  bool ok = f.cublasLtMatmulDescCreate(&d, kComputeFloat32, kFloat32) == kSuccess;
  const int32_t first = p.b_transposed ? kTransposed : kAsIs, second = p.a_transposed ? kTransposed : kAsIs;
  ok = ok && f.cublasLtMatmulDescSetAttribute(d, kTransposeA, &first, sizeof first) == kSuccess && f.cublasLtMatmulDescSetAttribute(d, kTransposeB, &second, sizeof second) == kSuccess;
  ok = ok && f.cublasLtMatrixLayoutCreate(&a, type(p.b_type), uint64_t(p.b_transposed ? p.k : p.n), uint64_t(p.b_transposed ? p.n : p.k), p.ldb) == kSuccess;
  ok = ok && f.cublasLtMatrixLayoutCreate(&b, type(p.a_type), uint64_t(p.a_transposed ? p.m : p.k), uint64_t(p.a_transposed ? p.k : p.m), p.lda) == kSuccess;
  ok = ok && f.cublasLtMatrixLayoutCreate(&c, type(p.c_type), uint64_t(p.n), uint64_t(p.m), p.ldc) == kSuccess;
  const Key key{p.m, p.n, p.k, p.lda, p.ldb, p.ldc, int64_t(p.a_type) * 8 + int64_t(p.c_type), int64_t(first) * 2 + second, int64_t(align[0]) << 16 | int64_t(align[1]) << 8 | align[2], p.accumulate};
  // A recording must hold the kernel that would be launched, so it finds none of its own and takes no other instead.
  if (context.recording() && !l.plans.count(key)) ok = false;
  else if (ok && !l.plans.count(key)) {
    if (l.plans.size() >= kMostPlans) l.plans.clear();
    Preference preference = nullptr;
    Heuristic best{};
    int found = 0;
    ok = f.cublasLtMatmulPreferenceCreate(&preference) == kSuccess;
    const size_t workspace = kWorkspace;
    ok = ok && f.cublasLtMatmulPreferenceSetAttribute(preference, kMostWorkspace, &workspace, sizeof workspace) == kSuccess;
    const int attributes[4] = {kAlignmentA, kAlignmentB, kAlignmentC, kAlignmentD};
    for (int i = 0; i < 4; ++i) ok = ok && f.cublasLtMatmulPreferenceSetAttribute(preference, attributes[i], &align[i < 3 ? i : 2], sizeof align[0]) == kSuccess;
    ok = ok && f.cublasLtMatmulAlgoGetHeuristic(l.handle, d, a, b, c, c, preference, 1, &best, &found) == kSuccess && found > 0 && best.state == kSuccess;
    if (preference) f.cublasLtMatmulPreferenceDestroy(preference);
    if (ok) l.plans[key] = best;
  }
  if (ok) {
    const float beta = p.accumulate ? 1.f : 0.f;
    void* workspace = context.scratch(kSlotProductWork, kWorkspace);
    ok = f.cublasLtMatmul(l.handle, d, &p.alpha, p.b, a, p.a, b, &beta, p.c, c, p.c, c, &l.plans[key].algorithm, workspace, kWorkspace, context.stream) == kSuccess;
  }
  if (c) f.cublasLtMatrixLayoutDestroy(c);
  if (b) f.cublasLtMatrixLayoutDestroy(b);
  if (a) f.cublasLtMatrixLayoutDestroy(a);
  if (d) f.cublasLtMatmulDescDestroy(d);
  if (!ok) {
    context.not_recorded("this product");
    return false;
  }
  if (p.bias) {
    const dim3 grid = blocks(ceil_div(p.m * p.n, 256));
    if (p.c_type == DType::f32) PLURALIGN_LAUNCH(bias_kernel_f32, grid, 256, 0, context.stream, static_cast<float*>(p.c), p.bias, p.m * p.n, p.n, p.ldc);
    else PLURALIGN_LAUNCH(bias_kernel_bf16, grid, 256, 0, context.stream, static_cast<bf16*>(p.c), p.bias, p.m * p.n, p.n, p.ldc);
  }
  return true;
}

void product(Context& context, const Product& p) {
  if (p.m <= 0 || p.n <= 0) return;
  if (!context.products->run(context, p)) own_product(context, p);
}

}  // namespace pluralign::cuda
