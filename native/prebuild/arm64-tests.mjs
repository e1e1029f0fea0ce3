// Cross-builds the C++ tests for arm64 and prints the program's path; qemu-aarch64 -L /usr/aarch64-linux-gnu runs it. Without
// those of CUDA kernels: a GPU emulated by an emulated processor is no other GPU.
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { compile, coreSources, root } from '../compile.mjs';

const program = await compile({
  folder: join(root, 'build/cpp-tests-arm64'),
  target: 'pluralign_tests',
  compiler: 'aarch64-linux-gnu-g++',
  defines: {
    CMAKE_SYSTEM_NAME: 'Linux',
    CMAKE_SYSTEM_PROCESSOR: 'aarch64',
    CMAKE_BUILD_TYPE: 'Release',
    PLURALIGN_TEST_CUDA: 'OFF',
  },
  sources: [
    ...coreSources(),
    ...readdirSync(join(root, 'native/test'))
      .filter((f) => f.endsWith('.cc') && !f.startsWith('cuda_'))
      .map((f) => `native/test/${f}`),
  ],
});
console.log(program);
