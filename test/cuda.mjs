// Everything about the CUDA library on one machine: builds it, says what it takes, runs the parity fixtures and
// the timings, and stops where a device is needed and there is none. For a bare machine with nvcc, CMake and Node: it needs
// dist/, build/Release/pluralign.node and the package's own dependencies in node_modules, and no registry.
//   node test/cuda.mjs              all of it; without a GPU up to the first launch
//   node test/cuda.mjs --emulated   parity on the emulated library instead; no nvcc, no GPU
//   node test/cuda.mjs --no-times   without the timings
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildCuda, resourceTable } from '../native/cuda/build.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const has = (flag) => process.argv.includes(flag);
const emulated = has('--emulated');
const start = Date.now();
let failed = 0;

function section(name, body) {
  const begin = Date.now();
  console.log(`== ${name}`);
  const good = body();
  if (!good) failed++;
  console.log(`== ${name}: ${good ? 'done' : 'FAILED'} in ${((Date.now() - begin) / 1000).toFixed(0)} s\n`);
  return good;
}

const run = (command, args, env = {}) =>
  spawnSync(command, args, { cwd: root, stdio: 'inherit', env: { ...process.env, ...env } }).status === 0;
const works = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;

function end() {
  console.log(`${failed === 0 ? 1 : 0} passed, ${failed} failed`);
  console.log(`total: ${((Date.now() - start) / 1000).toFixed(0)} s`);
  process.exit(failed === 0 ? 0 : 1);
}

for (const needed of ['dist/index.js', 'build/Release/pluralign.node'])
  if (!existsSync(join(root, needed))) {
    console.error(`${needed} is not there: run npm run build, here or where this folder came from`);
    process.exit(1);
  }

let library;
if (
  !section(emulated ? 'build, as C++ over the emulator' : 'build with nvcc', () => {
    try {
      const { path, resources } = buildCuda(emulated);
      library = path;
      if (!emulated) console.log(resourceTable(resources));
      return resources.every((r) => r[3] === 0);
    } catch (error) {
      console.error(error.message);
      return false;
    }
  })
)
  end();

const env = { PLURALIGN_CUDA_LIBRARY: library };
section('doctor', () => run(process.execPath, ['dist/cli/main.js', 'doctor'], env));
process.env.PLURALIGN_CUDA_LIBRARY = library;
const { describeCuda } = await import('../dist/native/device.js');
const { reason } = describeCuda();
if (reason) {
  console.log(`Here it ends: the next step starts kernels, and ${reason}.`);
  console.log('Not run: parity with PyTorch and the CPU, compute-sanitizer, timings.');
  end();
}

section('parity with PyTorch and the CPU', () => run(process.execPath, ['test/cuda-parity.mjs'], env));
if (!emulated) {
  if (works('compute-sanitizer'))
    for (const tool of ['memcheck', 'racecheck'])
      section(`compute-sanitizer ${tool}`, () =>
        run(
          'compute-sanitizer',
          ['--tool', tool, '--error-exitcode', '9', process.execPath, 'test/cuda-parity.mjs'],
          env,
        ),
      );
  else console.log('compute-sanitizer is not on PATH: not run\n');
  if (!has('--no-times'))
    for (const dtype of ['bf16', 'float32'])
      section(`times, ${dtype}`, () =>
        run(
          process.execPath,
          ['dist/cli/main.js', 'bench', 'train', '--device', 'cuda', '--dtype', dtype, '--large', '--json'],
          env,
        ),
      );
}
end();
