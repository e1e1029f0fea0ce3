// Operators on random data of fixed shapes, by name: what the programs of this folder run.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ops/table.h"

namespace pluralign {

struct BenchCase {
  std::string name;  // operator/type/shape
  double operations;  // multiplies and adds of one call; 0 where bytes say more
  double bytes;       // read and written by one call
  // Makes the operands; what it returns is one call.
  std::function<std::function<void()>(Context&)> prepare;
};

// `small`: shapes that take a simulated processor little time.
std::vector<BenchCase> bench_cases(bool small);

// One thread's context of an instruction set.
struct BenchMachine {
  explicit BenchMachine(Isa isa) : pool(1), context(kernels_of(isa), pool) {}
  Pool pool;
  Context context;
};

}  // namespace pluralign
