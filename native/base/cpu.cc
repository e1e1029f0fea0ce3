#include "cpu.h"

#include <cstdlib>
#include <cstring>

#include "status.h"
#if defined(__x86_64__) || defined(_M_X64)
#define PLURALIGN_X64 1
#include <cpuid.h>
#endif
#if defined(PLURALIGN_X64) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace pluralign {
namespace {

struct Features {
  bool avx2 = false, fma = false, f16c = false, avx512 = false, avx512_bf16 = false, amx_bf16 = false, neon = false, amd = false;
  bool tiles = false;      // the system saves the tile registers
  bool tiles_granted = false;  // and lets this process use them
};

#ifdef PLURALIGN_X64
uint64_t xgetbv0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t(high) << 32) | low;
}

// Linux hands out the tile registers on request, once for a process and all its threads, present and to come.
bool request_tiles() {
#if defined(__linux__)
  constexpr long get_permission = 0x1022, request_permission = 0x1023, tile_data = 18;  // asm/prctl.h
  unsigned long granted = 0;
  if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0) return false;
  return syscall(SYS_arch_prctl, get_permission, &granted) == 0 && (granted >> tile_data & 1);
#else
  return false;
#endif
}
#endif

Features detect() {
  Features f;
#ifdef PLURALIGN_X64
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return f;
  const bool osxsave = c & (1u << 27);
  const uint64_t xcr0 = osxsave ? xgetbv0() : 0;
  const bool ymm = (xcr0 & 6) == 6, zmm = (xcr0 & 0xe6) == 0xe6;
  f.tiles = (xcr0 & 0x60000) == 0x60000;
  f.fma = ymm && (c & (1u << 12));
  f.f16c = ymm && (c & (1u << 29));
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    f.avx2 = ymm && (b & (1u << 5));
    const uint32_t need = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F, DQ, BW, VL
    f.avx512 = zmm && (b & need) == need;
    const uint32_t amx = (1u << 22) | (1u << 24);  // BF16, TILE
    f.amx_bf16 = (d & amx) == amx;
    uint32_t a1, b1, c1, d1;
    if (__get_cpuid_count(7, 1, &a1, &b1, &c1, &d1)) f.avx512_bf16 = f.avx512 && (a1 & (1u << 5));
  }
  f.tiles_granted = f.amx_bf16 && f.tiles && request_tiles();
  __get_cpuid(0, &a, &b, &c, &d);
  f.amd = b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
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
    case Isa::avx512bf16: return "avx512bf16";
    case Isa::amx: return "amx";
  }
  return "?";
}

std::string isa_obstacle(Isa isa) {
  const Features& f = features();
  if (isa == Isa::reference || isa == Isa::generic) return "";
  std::string missing;
  const auto need = [&](bool there, const char* name) {
    if (!there) missing += (missing.empty() ? "" : " and ") + std::string(name);
  };
  if (isa == Isa::avx2) need(f.avx2, "avx2");
  else need(f.avx512, "avx512");
  need(f.fma, "fma");
  if (isa == Isa::avx512bf16 || isa == Isa::amx) need(f.avx512_bf16, "avx512_bf16");
  if (isa == Isa::amx) need(f.amx_bf16, "amx_bf16");
  if (!missing.empty()) return "this processor or system has no " + missing;
  if (isa == Isa::amx && !f.tiles) return "the system does not save the tile registers of AMX (Linux does from 5.16)";
  if (isa == Isa::amx && !f.tiles_granted) return "the system refused this process the tile registers of AMX (arch_prctl, XTILEDATA)";
  return "";
}

bool isa_supported(Isa isa) { return isa_obstacle(isa).empty(); }

Isa choose_isa() {
  const Isa all[] = {Isa::amx, Isa::avx512bf16, Isa::avx512, Isa::avx2, Isa::generic, Isa::reference};
  if (const char* wanted = std::getenv("PLURALIGN_ISA"); wanted && *wanted) {
    for (Isa isa : all) {
      if (std::strcmp(wanted, isa_name(isa)) != 0) continue;
      if (const std::string why = isa_obstacle(isa); !why.empty())
        throw_error("BAD_ARGUMENT", "PLURALIGN_ISA=%s: this processor cannot run it: %s", wanted, why.c_str());
      return isa;
    }
    throw_error("BAD_ARGUMENT", "PLURALIGN_ISA=%.40s: expected reference, generic, avx2, avx512, avx512bf16 or amx", wanted);
  }
  for (Isa isa : all)
    if (isa_supported(isa) && (isa != Isa::avx512bf16 || features().amd)) return isa;
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
