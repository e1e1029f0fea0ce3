// Instruction sets: what the processor has, and which one the operators run on.
#pragma once
#include <string>
#include <vector>

namespace pluralign {

// avx512bf16 and amx are avx512 with products of bfloat16 of their own: `vdpbf16ps`, or the tiles of AMX.
enum class Isa { reference = 0, generic = 1, avx2 = 2, avx512 = 3, avx512bf16 = 4, amx = 5 };
constexpr int kIsas = 6;

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);
// Why isa_supported is false, as a clause; empty where it is true.
std::string isa_obstacle(Isa isa);

// The set PLURALIGN_ISA names, or the best one: amx, avx512bf16, avx512, avx2, generic. avx512bf16 only on AMD's
// processors: there `vdpbf16ps` has twice the rate of a float32 multiply-add, on Intel's half of it (`bench ops` measures
// both). A rule rather than a probe, so that two runs on one machine never differ. Throws BAD_ARGUMENT for a name that is
// unknown or that this processor cannot run.
Isa choose_isa();

// Names of the features that matter here, for `doctor`: avx2, fma, avx512f, avx512_bf16, amx_bf16, neon …
std::vector<std::string> cpu_features();

}  // namespace pluralign
