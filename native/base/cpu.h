// Instruction sets: what the processor has, and which one the operators run on.
#pragma once
#include <string>
#include <vector>

namespace pluralign {

enum class Isa { reference = 0, generic = 1, avx2 = 2, avx512 = 3 };

const char* isa_name(Isa isa);
bool isa_supported(Isa isa);

// The best supported set, or the one PLURALIGN_ISA names (reference, generic, avx2, avx512). Throws BAD_ARGUMENT for
// a name that is unknown or that this processor cannot run.
Isa choose_isa();

// Names of the features that matter here, for `doctor`: avx2, fma, avx512f, avx512_bf16, amx_bf16, neon …
std::vector<std::string> cpu_features();

}  // namespace pluralign
