// Builds the CUDA library with CMake and nvcc into build/cuda; says what every kernel takes (registers, spilled bytes, shared
// memory), and fails where one spills. `--emulated` builds the same sources as C++ over the emulator of native/test/cuda, into
// build/cuda-emulated: a device for tests where there is no GPU. `--report` prints the table of docs/cuda.md,
// `--package` writes the platform's package into build/cuda/package.
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { root } from '../compile.mjs';

const works = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;

/** Where the library lies, built or not. */
export const libraryPath = (emulated) =>
  join(root, emulated ? 'build/cuda-emulated' : 'build/cuda', 'libpluralign_cuda.so');

function cmake(args) {
  const run = spawnSync('cmake', args, { cwd: root, encoding: 'utf8', maxBuffer: 1 << 28 });
  if (run.status !== 0) throw new Error(`cmake ${args.join(' ')}\n${run.stdout}${run.stderr}`);
  return run.stdout + run.stderr;
}

/** Builds one of the two; gives the library's path and, of nvcc, what it printed about kernels that it compiled. */
export function buildCuda(emulated) {
  if (!works('cmake')) throw new Error('the CUDA library is built with CMake, which is not on PATH');
  if (!emulated && !works('nvcc')) throw new Error('nvcc is not on PATH: install the CUDA toolkit, 12.4 or newer');
  const folder = join(root, emulated ? 'build/cuda-emulated' : 'build/cuda');
  mkdirSync(folder, { recursive: true });
  const configure = [
    ...['-S', root, '-B', folder, `-DPLURALIGN_CUDA=${emulated ? 'EMULATED' : 'ON'}`, '-DPLURALIGN_TESTS=OFF'],
    '-DCMAKE_BUILD_TYPE=Release',
    ...(works('ninja') ? ['-G', 'Ninja'] : []),
  ];
  if (!['build.ninja', 'Makefile'].some((f) => existsSync(join(folder, f)))) cmake(configure);
  const jobs = String(availableParallelism());
  const log = cmake(['--build', folder, '--target', 'pluralign_cuda', '--parallel', jobs]);
  return { path: libraryPath(emulated), resources: emulated ? [] : remember(folder, log) };
}

const shortName = (demangled) =>
  demangled
    .replace(/\((?:int|bool|long)\)/g, '')
    .replace(/\(anonymous namespace\)::|pluralign::cuda::|pluralign::|void |_GLOBAL__N__\w+::/g, '')
    .replace(/\(.*$/, '');

/** One row for each kernel and architecture: [name, sm, registers, spilled bytes, static shared memory]. */
function parse(log) {
  const rows = [];
  let entry = null;
  let spill = 0;
  for (const line of log.split('\n')) {
    const compiling = /Compiling entry function '(\w+)' for '(sm_\d+)'/.exec(line);
    if (compiling) entry = compiling.slice(1);
    const spilled = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spilled) spill = Number(spilled[1]) + Number(spilled[2]);
    const used = /Used (\d+) registers/.exec(line);
    if (!used || !entry) continue;
    rows.push([entry[0], entry[1], Number(used[1]), spill, Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0)]);
    entry = null;
    spill = 0;
  }
  const names = spawnSync('c++filt', [], { input: rows.map((r) => r[0]).join('\n'), encoding: 'utf8' });
  const demangled = names.status === 0 ? names.stdout.split('\n') : rows.map((r) => r[0]);
  return rows.map((row, i) => [shortName(demangled[i]), ...row.slice(1)]);
}

/** What this build compiled, over what earlier builds did. */
function remember(folder, log) {
  const file = join(folder, 'resources.json');
  const known = new Map(existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : []);
  for (const row of parse(log)) known.set(`${row[0]} ${row[1]}`, row);
  writeFileSync(file, JSON.stringify([...known]));
  return [...known.values()];
}

/** A Markdown table, kernels by name: registers on either architecture, spilled bytes. */
export function resourceTable(resources) {
  const kernels = Map.groupBy
    ? Map.groupBy(resources, (r) => r[0])
    : resources.reduce((all, r) => all.set(r[0], [...(all.get(r[0]) ?? []), r]), new Map());
  const lines = ['| kernel | registers, sm_80 | registers, sm_90 | spilled bytes |', '|---|---:|---:|---:|'];
  for (const name of [...kernels.keys()].sort()) {
    const of = (sm) => kernels.get(name).find((r) => r[1] === sm)?.[2] ?? '';
    lines.push(
      `| \`${name}\` | ${of('sm_80')} | ${of('sm_90')} | ${Math.max(...kernels.get(name).map((r) => r[3]))} |`,
    );
  }
  return lines.join('\n');
}

/** The package of this platform, ready for `npm pack`: the library and what says whose it is. */
function writePackage(library) {
  const { version, license } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const folder = join(root, 'build/cuda/package');
  mkdirSync(folder, { recursive: true });
  const name = `pluralign-cuda-${process.platform}-${process.arch}`;
  const description = `The CUDA library of pluralign ${version} for ${process.platform}-${process.arch}`;
  const files = ['libpluralign_cuda.so', 'LICENSE'];
  const own = { name, version, description, license, os: [process.platform], cpu: [process.arch], files };
  writeFileSync(join(folder, 'package.json'), `${JSON.stringify(own, null, 2)}\n`);
  copyFileSync(library, join(folder, files[0]));
  copyFileSync(join(root, 'LICENSE'), join(folder, files[1]));
  return folder;
}

if (process.argv[1]?.endsWith('cuda/build.mjs')) {
  const emulated = process.argv.includes('--emulated');
  const start = Date.now();
  try {
    const { path, resources } = buildCuda(emulated);
    if (process.argv.includes('--package'))
      console.log(`native: ${writePackage(path).slice(root.length)} holds the package`);
    else if (process.argv.includes('--report')) console.log(resourceTable(resources));
    else console.log(`native: built ${path.slice(root.length)} in ${((Date.now() - start) / 1000).toFixed(0)} s`);
    const spilling = resources.filter((r) => r[3] > 0);
    for (const [name, sm, , bytes] of spilling) console.error(`${name} spills ${bytes} bytes on ${sm}`);
    if (spilling.length > 0) process.exitCode = 1;
  } catch (error) {
    console.error(error.message);
    process.exitCode = 1;
  }
}
