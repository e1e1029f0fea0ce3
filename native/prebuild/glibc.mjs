// Lets a Linux machine with a new glibc link binaries for an older one. The linker binds every symbol to its newest
// version, so it is given stand-ins of the C library in which a symbol's newest version is the newest one of the older
// release; the real libraries here still carry those versions, and say which there are.
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { basename, isAbsolute, join } from 'node:path';
import { fileURLToPath } from 'node:url';

export function output(command, args) {
  const run = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 28 });
  if (run.error || run.status !== 0)
    throw new Error(`${command} ${args.join(' ')}: ${run.error?.message ?? `${run.stdout}${run.stderr}`}`);
  return run.stdout;
}

const parts = (version) => version.split('.').map(Number);

/** Orders versions such as 2.4 and 2.28. */
export function compareVersions(a, b) {
  const [x, y] = [parts(a), parts(b)];
  for (let i = 0; i < Math.max(x.length, y.length); ++i)
    if ((x[i] ?? 0) !== (y[i] ?? 0)) return (x[i] ?? 0) - (y[i] ?? 0);
  return 0;
}

const newest = (versions) => versions.reduce((a, b) => (compareVersions(a, b) >= 0 ? a : b));

/** Dynamic symbols of a library or binary: `glibc` is a version such as 2.17, null where the symbol has no GLIBC version. */
function symbols(path, objdump) {
  const found = [];
  for (const line of output(objdump, ['-T', path]).split('\n')) {
    const match =
      /^[0-9a-f]{16} (.{7}) (\S+)\s+([0-9a-f]+)\s+(?:(\(?[A-Za-z_][^ ]*\)?)\s+)?(?:\.hidden |0x[0-9a-f]+ )?(\S+)$/.exec(
        line,
      );
    if (!match || match[2] === '*ABS*') continue;
    const [, flags, section, size, tag = '', name] = match;
    const glibc = /^\(?GLIBC_([0-9.]+)\)?$/.exec(tag)?.[1] ?? null;
    found.push({
      name,
      glibc,
      tag,
      undefined: section === '*UND*',
      weak: flags.includes('w'),
      object: flags.endsWith('O'),
      size: Number.parseInt(size, 16),
    });
  }
  return found;
}

/**
 * The oldest glibc on which `path` loads, the symbols that ask for it, and symbols that nothing provides (other than
 * Node-API, which Node does).
 */
export function floor(path, objdump = 'objdump') {
  const needed = symbols(path, objdump).filter((s) => s.undefined);
  const versioned = needed.filter((s) => s.glibc);
  const version = versioned.length > 0 ? newest(versioned.map((s) => s.glibc)) : null;
  return {
    version,
    symbols: versioned.filter((s) => s.glibc === version).map((s) => s.name),
    unprovided: needed
      .filter((s) => ['', 'Base'].includes(s.tag) && !s.weak && !/^(napi|node_api)_/.test(s.name))
      .map((s) => s.name),
  };
}

function stub({ compiler, folder, file, soname, exports }) {
  const byVersion = new Map();
  for (const s of exports) byVersion.set(s.glibc, [...(byVersion.get(s.glibc) ?? []), s]);
  const assembly = exports.map((s) =>
    s.object
      ? `.data\n.globl ${s.name}\n.type ${s.name},%object\n.size ${s.name},${s.size || 8}\n${s.name}: .zero ${s.size || 8}`
      : `.text\n.globl ${s.name}\n.type ${s.name},%function\n${s.name}: .zero 4`,
  );
  const script = [...byVersion].map(
    ([version, of], i) =>
      `GLIBC_${version} { global: ${of.map((s) => `${s.name};`).join(' ')}${i === 0 ? ' local: *;' : ''} };`,
  );
  const source = join(folder, `${file}.s`);
  const versions = join(folder, `${file}.map`);
  writeFileSync(source, `${assembly.join('\n')}\n.section .note.GNU-stack,"",%progbits\n`);
  writeFileSync(versions, `${script.join('\n')}\n`);
  const path = join(folder, file);
  output(compiler, [
    '-shared',
    '-nostdlib',
    `-Wl,-soname,${soname}`,
    `-Wl,--version-script,${versions}`,
    source,
    '-o',
    path,
  ]);
  return path;
}

/**
 * Fills `folder` with stand-ins of glibc `limit` made from the libraries `compiler` links against, and returns the
 * LDFLAGS that use them; null where those libraries are no newer than `limit`.
 */
export function linkFor(limit, { compiler, objdump, folder }) {
  const library = (name) => {
    const path = output(compiler, [`-print-file-name=${name}`]).trim();
    if (!isAbsolute(path)) throw new Error(`${compiler} has no ${name}`);
    return path;
  };
  const loader = { x86_64: 'ld-linux-x86-64.so.2', aarch64: 'ld-linux-aarch64.so.1' }[
    output(compiler, ['-dumpmachine']).split('-')[0]
  ];
  if (!loader) throw new Error(`${compiler}: glibc's loader of this processor is not known here`);
  const read = (name) => symbols(library(name), objdump).filter((s) => !s.undefined && s.glibc);
  const libc = read('libc.so.6');
  if (compareVersions(newest(libc.map((s) => s.glibc)), limit) <= 0) return null;
  mkdirSync(folder, { recursive: true });

  const moved = { thread: [], dl: [] };
  const atLimit = (all) => {
    const kept = new Map();
    const defaults = new Map();
    for (const s of all) {
      if (!s.tag.startsWith('(')) defaults.set(s.name, s.glibc);
      if (compareVersions(s.glibc, limit) > 0) continue;
      const other = kept.get(s.name);
      if (!other || compareVersions(other.glibc, s.glibc) < 0) kept.set(s.name, s);
    }
    // glibc 2.34 took libpthread and libdl into libc and gave what they exported a second version.
    return [...kept.values()].filter((s) => {
      const group =
        defaults.get(s.name) === '2.34' && /^(?:__)?(?:(dl)|pthread_|sem_|cnd_|mtx_|thrd_|tss_)/.exec(s.name);
      if (group) moved[group[1] ?? 'thread'].push(s);
      return !group;
    });
  };
  const inLibc = atLimit(libc);
  const make = (file, soname, exports) => stub({ compiler, folder, file, soname, exports });
  make('libm.so', 'libm.so.6', atLimit(read('libm.so.6')));
  if (moved.thread.length > 0) make('libpthread.so', 'libpthread.so.0', moved.thread);
  if (moved.dl.length > 0) make('libdl.so', 'libdl.so.2', moved.dl);
  const c = make('libc.so.6', 'libc.so.6', inLibc);
  const ld = make(loader, loader, atLimit(read(loader)));
  writeFileSync(join(folder, 'libc.so'), `GROUP ( ${c} ${library('libc_nonshared.a')} AS_NEEDED ( ${ld} ) )\n`);

  const source = join(folder, 'later.c');
  copyFileSync(fileURLToPath(new URL('later.c', import.meta.url)), source);
  const object = join(folder, `${basename(source, '.c')}.o`);
  output(compiler, [
    '-x',
    'c',
    '-std=gnu11',
    '-O2',
    '-fPIC',
    '-fvisibility=hidden',
    '-Wall',
    '-c',
    source,
    '-o',
    object,
  ]);
  return `-L${folder} ${object}`;
}
