// The tile instructions of AMX on processors without them, so that the kernels are tested as they are compiled: a handler
// of SIGILL decodes them and does what they would. About a microsecond each. Only on x86-64 Linux.
#pragma once
#include <cstdint>

namespace pluralign::test {

// From now on, in every thread. False where this system has no way to do it. A processor with AMX never traps.
bool emulate_amx();

// Traps so far, in all threads.
int64_t emulated_instructions();

}  // namespace pluralign::test
