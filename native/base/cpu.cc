#include "cpu.h"

#include <cstdlib>
#include <cstring>

#include "status.h"
#if defined(__x86_64__) || defined(_M_X64)
#define PLURALIGN_X64 1
#include <cpuid.h>
#endif

namespace pluralign {
namespace {

struct Features {
  bool avx2 = false, fma = false, f16c = false, avx512 = false, avx512_bf16 = false, amx_bf16 = false, neon = false;
};

#ifdef PLURALIGN_X64
uint64_t xgetbv0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t(high) << 32) | low;
}
#endif

Features detect() {
  Features f;
#ifdef PLURALIGN_X64
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool osxsave = c & (1u << 27);
  const uint64_t xcr0 = osxsave ? xgetbv0() : 0;
  const bool ymm = (xcr0 & 6) == 6, zmm = (xcr0 & 0xe6) == 0xe6, tiles = (xcr0 & 0x60000) == 0x60000;
  f.fma = ymm && (c & (1u << 12));
  f.f16c = ymm && (c & (1u << 29));
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    f.avx2 = ymm && (b & (1u << 5));
    const uint32_t need = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
    f.avx512 = zmm && (b & need) == need;
    f.amx_bf16 = tiles && (d & (1u << 22));
    uint32_t a1, b1, c1, d1;
    if (__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1)) f.avx512_bf16 = f.avx512 && (a1 & (1u << 5));
  }
#elif defined(__aarch64__)
  f.neon = true;
#endif
  return f;
}

const Features& features() {
  static const Features f = detect();
  return f;
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::reference: return "reference";
    case Isa::generic: return "generic";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "?";
}

bool isa_supported(Isa isa) {
  switch (isa) {
    case Isa::reference: case Isa::generic: return true;
    case Isa::avx2: return features().avx2 && features().fma;
    case Isa::avx512: return features().avx512 && features().fma;
  }
  return false;
}

Isa choose_isa() {
  const Isa all[] = {Isa::avx512, Isa::avx2, Isa::generic, Isa::reference};
  if (const char* wanted = std::getenv("PLURALIGN_ISA"); wanted && *wanted) {
    for (Isa isa : all) {
      if (std::strcmp(wanted, isa_name(isa)) != 0) continue;
      if (!isa_supported(isa)) throw_error("BAD_ARGUMENT", "PLURALIGN_ISA=%s: this processor cannot run it", wanted);
      return isa;
    }
    throw_error("BAD_ARGUMENT", "PLURALIGN_ISA=%.40s: expected reference, generic, avx2 or avx512", wanted);
  }
  for (Isa isa : all)
    if (isa_supported(isa)) return isa;
  return Isa::generic;
}

std::vector<std::string> cpu_features() {
  const Features& f = features();
  std::vector<std::string> names;
  if (f.avx2) names.push_back("avx2");
  if (f.fma) names.push_back("fma");
  if (f.f16c) names.push_back("f16c");
  if (f.avx512) names.push_back("avx512");
  if (f.avx512_bf16) names.push_back("avx512_bf16");
  if (f.amx_bf16) names.push_back("amx_bf16");
  if (f.neon) names.push_back("neon");
  return names;
}

}  // namespace pluralign
