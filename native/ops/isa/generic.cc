// What every processor of the architecture has: SSE2 on x86-64, NEON on arm64.
#include "ops/isa/headers.h"

namespace pluralign::isa_generic {

#define PLURALIGN_W 4
#if defined(__aarch64__)
#define PLURALIGN_MR 8
#else
#define PLURALIGN_MR 4
#endif
#define PLURALIGN_NV 2
#include "ops/isa/kernels.inl"

}  // namespace pluralign::isa_generic
