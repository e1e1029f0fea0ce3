// Builds and runs Google Benchmark over operators, shapes and the instruction sets of this processor, on one thread. Needs its
// library (Debian: libbenchmark-dev).
//
// node native/bench/run.mjs [--benchmark_filter=REGEX …]
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { compile, coreSources, root } from '../compile.mjs';

try {
  const program = await compile({
    folder: join(root, 'build/cpp-tests'),
    target: 'pluralign_benchmark',
    defines: { PLURALIGN_SANITIZE: '', CMAKE_BUILD_TYPE: 'RelWithDebInfo' },
    sources: [...coreSources(), 'native/bench/cases.cc', 'native/bench/benchmark.cc'],
    libraries: ['-lbenchmark'],
  });
  process.exitCode = spawnSync(program, process.argv.slice(2), { stdio: 'inherit' }).status ?? 1;
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
