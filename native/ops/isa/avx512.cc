// The vector code for AVX512. Standard headers come before the target is raised, so that no inline function of theirs is
// compiled for a processor that may not be there.
#include "ops/isa/headers.h"

#if defined(__x86_64__) || defined(_M_X64)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

namespace pluralign::isa_avx512 {

#define PLURALIGN_W 16
#define PLURALIGN_MR 14
#define PLURALIGN_NV 2
#include "ops/isa/kernels.inl"

}  // namespace pluralign::isa_avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
