// Google Benchmark over the operators: every operator, shape and instruction set of this processor, on one thread.
#include <benchmark/benchmark.h>

#include "base/cpu.h"
#include "cases.h"

namespace {

void run(benchmark::State& state, const pluralign::BenchCase& one, pluralign::Isa isa) {
  pluralign::BenchMachine machine(isa);
  const auto call = one.prepare(machine.context);
  call();
  for (auto _ : state) call();
  if (one.operations > 0) state.counters["FLOP/s"] = benchmark::Counter(one.operations, benchmark::Counter::kIsIterationInvariantRate);
  if (one.bytes > 0) state.SetBytesProcessed(int64_t(one.bytes * double(state.iterations())));
}

}  // namespace

int main(int argc, char** argv) {
  const auto cases = pluralign::bench_cases(false);
  for (int i = int(pluralign::Isa::generic); i < pluralign::kIsas; ++i) {
    const auto isa = pluralign::Isa(i);
    if (!pluralign::isa_supported(isa)) continue;
    for (const auto& one : cases)
      benchmark::RegisterBenchmark((one.name + "/" + pluralign::isa_name(isa)).c_str(), [&one, isa](benchmark::State& state) { run(state, one, isa); });
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
