// The part of cuBLASLt that products use, declared by hand: the library is found at run time and need not be there to build.
// Names, numbers and layouts are those of cublasLt.h, stable since CUDA 11.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cuda/device.cuh"

namespace pluralign::cuda::cublaslt {

using Handle = void*;
using Descriptor = void*;
using Layout = void*;
using Preference = void*;
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

constexpr int kSuccess = 0;
constexpr int kFloat32 = 0, kBfloat16 = 14;  // cudaDataType_t
constexpr int kComputeFloat32 = 68;          // CUBLAS_COMPUTE_32F: no TF32
constexpr int32_t kAsIs = 0, kTransposed = 1;
constexpr int kTransposeA = 3, kTransposeB = 4;                                                              // CUBLASLT_MATMUL_DESC_…
constexpr int kMostWorkspace = 1, kAlignmentA = 5, kAlignmentB = 6, kAlignmentC = 7, kAlignmentD = 8;        // CUBLASLT_MATMUL_PREF_…

struct Functions {
  size_t (*cublasLtGetVersion)();
  int (*cublasLtCreate)(Handle*);
  int (*cublasLtDestroy)(Handle);
  int (*cublasLtMatmulDescCreate)(Descriptor*, int compute, int scale);
  int (*cublasLtMatmulDescDestroy)(Descriptor);
  int (*cublasLtMatmulDescSetAttribute)(Descriptor, int attribute, const void* value, size_t bytes);
  int (*cublasLtMatrixLayoutCreate)(Layout*, int type, uint64_t rows, uint64_t cols, int64_t ld);
  int (*cublasLtMatrixLayoutDestroy)(Layout);
  int (*cublasLtMatmulPreferenceCreate)(Preference*);
  int (*cublasLtMatmulPreferenceDestroy)(Preference);
  int (*cublasLtMatmulPreferenceSetAttribute)(Preference, int attribute, const void* value, size_t bytes);
  int (*cublasLtMatmulAlgoGetHeuristic)(Handle, Descriptor, Layout a, Layout b, Layout c, Layout d, Preference, int wanted, Heuristic*, int* found);
  int (*cublasLtMatmul)(Handle, Descriptor, const void* alpha, const void* a, Layout, const void* b, Layout, const void* beta, const void* c, Layout, void* d, Layout, const Algorithm*,
                        void* workspace, size_t bytes, cudaStream_t);
};

}  // namespace pluralign::cuda::cublaslt
