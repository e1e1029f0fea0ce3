// Runs each case once where its instructions are counted, under callgrind with --collect-atstart=no; one dump for each case,
// named after it. Arguments: the names of the instruction sets.
#include <valgrind/callgrind.h>

#include <cstring>
#include <deque>
#include <string>

#include "base/cpu.h"
#include "cases.h"

int main(int argc, char** argv) {
  std::deque<std::string> names;  // alive to the end: a dump is written after its request
  for (const auto& one : pluralign::bench_cases(true))
    for (int i = 0; i < pluralign::kIsas; ++i) {
      const auto isa = pluralign::Isa(i);
      bool wanted = false;
      for (int a = 1; a < argc; ++a) wanted = wanted || std::strcmp(argv[a], pluralign::isa_name(isa)) == 0;
      if (!wanted || !pluralign::isa_supported(isa)) continue;
      pluralign::BenchMachine machine(isa);
      const auto call = one.prepare(machine.context);
      call();  // buffers grow in the first call
      CALLGRIND_TOGGLE_COLLECT;
      call();
      CALLGRIND_TOGGLE_COLLECT;
      CALLGRIND_DUMP_STATS_AT(names.emplace_back(one.name + "/" + pluralign::isa_name(isa)).c_str());
    }
  return names.empty() ? 1 : 0;
}
