// Contexts of the emulated library that record, or do not.
#pragma once
#include <cstdlib>

#include "cuda_device.h"

namespace pluralign::test {

struct Graphs {
  explicit Graphs(bool on) { setenv("PLURALIGN_CUDA_GRAPHS", on ? "1" : "0", 1); }
  ~Graphs() { unsetenv("PLURALIGN_CUDA_GRAPHS"); }
  Graphs(const Graphs&) = delete;
};

}  // namespace pluralign::test
