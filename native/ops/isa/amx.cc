// Products of bfloat16 by the tiles of AMX; everything else of this set is avx512bf16's.
#include "ops/isa/headers.h"

#if defined(__x86_64__) || defined(_M_X64)
#define PLURALIGN_TARGET "amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target(PLURALIGN_TARGET))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of its own headers
#pragma GCC target("amx-tile,amx-bf16,avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace pluralign::isa_amx {

#define PLURALIGN_W 16
#include "ops/isa/vec.inl"
#include "ops/gemm/bf16_finish.inl"
#include "ops/gemm/bf16_tiles.inl"

void fill(Kernels& k) {
  fill_bf16_tiles(k);
  // Tiles are several times as fast, and wait for nothing.
  k.attend_narrow = nullptr;
  k.attend_narrow_backward = nullptr;
}

}  // namespace pluralign::isa_amx

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
