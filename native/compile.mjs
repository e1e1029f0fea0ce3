// Builds one C++ program of this repository: with CMake where it is on PATH, otherwise by calling the compiler for each
// source that is older than its object. Quick when nothing changed.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('..', import.meta.url));

const works = (command, args = ['--version']) => spawnSync(command, args, { stdio: 'ignore' }).status === 0;

/** The sources of base, operators and model. */
export function coreSources() {
  const { base, ops, model } = JSON.parse(readFileSync(join(root, 'native/sources.json'), 'utf8'));
  return [...base, ...ops, ...model];
}

/** The CUDA library's sources and the emulator they are compiled over as C++, for tests of its kernels. */
export function emulatedCudaSources() {
  const { cuda, emulator } = JSON.parse(readFileSync(join(root, 'native/sources.json'), 'utf8'));
  return [...cuda, ...emulator];
}

/** Operators described once, for tests on any device. */
export const operatorSources = () => ['check', 'rows', 'products'].map((name) => `native/test/operators/${name}.cc`);

/** The program that tries them on a device library: built where it is not there yet. */
export const deviceTests = () =>
  compile({
    folder: join(root, 'build/device-tests'),
    target: 'pluralign_device_tests',
    defines: { PLURALIGN_SANITIZE: '', CMAKE_BUILD_TYPE: 'Release' },
    sources: [...coreSources(), ...operatorSources(), 'native/test/operators/main.cc'],
  });

export function findCompiler() {
  const found = [process.env.CXX, 'g++', 'clang++', 'c++'].find((c) => c && works(c));
  if (!found) throw new Error('no C++ compiler: install g++ or clang++, or set CXX');
  return found;
}

function step(command, args) {
  const run = spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (run.status !== 0) throw new Error(`${command} ${args.join(' ')}\n${run.stdout}${run.stderr}`);
}

function withCmake({ folder, target, compiler, defines }) {
  // An interrupted configuration leaves a cache but no build files.
  if (!['build.ninja', 'Makefile'].some((f) => existsSync(join(folder, f)))) {
    const args = ['-S', root, '-B', folder, ...Object.entries(defines).map(([k, v]) => `-D${k}=${v}`)];
    if (compiler) args.push(`-DCMAKE_CXX_COMPILER=${compiler}`);
    if (works('ninja')) args.push('-G', 'Ninja');
    step('cmake', args);
  }
  step('cmake', ['--build', folder, '--target', target, '--parallel', String(availableParallelism())]);
}

function newestHeader(folder) {
  let newest = 0;
  for (const entry of readdirSync(folder, { withFileTypes: true, recursive: true }))
    if (/\.(h|inl|cuh)$/.test(entry.name))
      newest = Math.max(newest, statSync(join(entry.parentPath, entry.name)).mtimeMs);
  return newest;
}

async function withCompiler({ folder, target, compiler = findCompiler(), sources, flags = [], libraries = [] }) {
  mkdirSync(folder, { recursive: true });
  const common = [
    '-std=c++20',
    '-O2',
    '-g',
    '-DNDEBUG',
    '-Wall',
    '-Wextra',
    '-Wno-unused-parameter',
    '-ffp-contract=fast',
    '-pthread',
    ...flags,
  ];
  const headers = newestHeader(join(root, 'native'));
  const time = (path) => (existsSync(path) ? statSync(path).mtimeMs : 0);
  const objects = sources.map((s) => join(folder, `${s.replaceAll('/', '-')}.o`));
  const stale = sources.flatMap((source, i) =>
    time(objects[i]) > Math.max(headers, time(join(root, source))) ? [] : [[source, objects[i]]],
  );
  const compile = (source, object) =>
    new Promise((resolve, reject) => {
      const cuda = source.endsWith('.cu') ? ['-DPLURALIGN_EMULATE_CUDA', '-x', 'c++'] : [];
      const child = spawn(compiler, [...common, '-Inative', ...cuda, '-c', source, '-o', object], {
        cwd: root,
        stdio: 'inherit',
      });
      child.on('error', reject);
      child.on('close', (status) => (status === 0 ? resolve() : reject(new Error(`${compiler} failed on ${source}`))));
    });
  const worker = async () => {
    for (let next = stale.shift(); next; next = stale.shift()) await compile(...next);
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  const program = join(folder, target);
  if (time(program) <= Math.max(...objects.map(time)))
    step(compiler, [...flags, '-pthread', ...objects, '-o', program, ...libraries, '-ldl']);
}

/**
 * Builds `target` and returns its path. `defines` are CMake's; `sources`, `flags` and `libraries` say the same to the fallback.
 */
export async function compile(options) {
  if (works('cmake')) withCmake(options);
  else await withCompiler(options);
  return join(options.folder, options.target);
}
