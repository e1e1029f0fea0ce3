// Builds the binaries that are shipped: prebuilds/<platform>-<arch>/pluralign[.<libc>].node, by prebuildify in a copy of
// the sources, so that the local build stays. Targets are arguments such as linux-x64 and linux-arm64; none: this
// machine's. Linux binaries for glibc are held to glibc 2.28, Node 20's own floor.
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync, symlinkSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { headers } from './build.mjs';
import { compareVersions, floor, linkFor } from './prebuild/glibc.mjs';

export const glibcLimit = '2.28';
const root = fileURLToPath(new URL('..', import.meta.url));
const crossTools = { arm64: 'aarch64-linux-gnu-', x64: 'x86_64-linux-gnu-' };
const here = `${process.platform}-${process.arch}`;
const works = (command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0;

function fail(message) {
  console.error(`prebuild: ${message}`);
  process.exit(1);
}

function toolchain(target) {
  const [platform, arch] = target.split('-');
  if (platform === 'win32') return { env: {} };
  // Apple's compiler makes both architectures, and node-gyp asks it for the one that is wanted.
  if (platform === 'darwin' && process.platform === 'darwin') return { env: {}, strip: 'strip' };
  if (target === here) return { compiler: process.env.CC ?? 'gcc', objdump: 'objdump', strip: 'strip', env: {} };
  const prefix = platform === 'linux' && process.platform === 'linux' && crossTools[arch];
  if (!prefix) fail(`${target} cannot be built on ${here}; the release workflow builds it on a machine of its own`);
  if (!works(`${prefix}g++`))
    fail(`${target} needs ${prefix}g++: apt-get install g++-${prefix.slice(0, -1).replace('_', '-')}`);
  const env = { CC: `${prefix}gcc`, CXX: `${prefix}g++`, LINK: `${prefix}g++`, AR: `${prefix}ar` };
  return { compiler: env.CC, objdump: `${prefix}objdump`, strip: `${prefix}strip`, env };
}

function copySources(folder) {
  for (const part of ['native', 'binding.gyp', 'package.json'])
    cpSync(join(root, part), join(folder, part), { recursive: true });
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'), 'junction');
}

/** Throws where a binary asks for more than glibc 2.28; otherwise says what it asks for. */
export function checkFloor(path, objdump) {
  const { version, symbols, unprovided } = floor(path, objdump);
  if (unprovided.length > 0) throw new Error(`${path}: nothing provides ${unprovided.join(', ')}`);
  if (version && compareVersions(version, glibcLimit) > 0)
    throw new Error(`${path}: needs glibc ${version} (${symbols.join(', ')}), more than ${glibcLimit}`);
  return version;
}

function build(target) {
  const [platform, arch] = target.split('-');
  const musl = platform === 'linux' && existsSync('/etc/alpine-release');
  const tools = toolchain(target);
  const start = Date.now();
  const folder = mkdtempSync(join(tmpdir(), 'pluralign-prebuild-'));
  try {
    copySources(folder);
    const env = { ...process.env, ...headers(), ...tools.env, JOBS: String(availableParallelism()) };
    if (platform === 'linux' && !musl) {
      const flags = linkFor(glibcLimit, { ...tools, folder: join(folder, 'glibc') });
      if (flags) env.LDFLAGS = `${env.LDFLAGS ?? ''} ${flags}`;
    }
    const prebuildify = createRequire(import.meta.url).resolve('prebuildify/bin.js');
    const args = ['--napi', '--target', process.versions.node, '--platform', platform, '--arch', arch, '--cwd', folder];
    args.push('--out', folder, '--name', 'pluralign');
    if (platform === 'linux') args.push('--tag-libc', musl ? 'musl' : 'glibc');
    if (tools.strip) args.push('--strip', '--strip-bin', tools.strip);
    const run = spawnSync(process.execPath, [prebuildify, ...args], {
      cwd: folder,
      env,
      encoding: 'utf8',
      maxBuffer: 1 << 28,
    });
    if (run.status !== 0) fail(`${target} failed\n${run.stdout}${run.stderr}`);

    const name = `prebuilds/${target}/pluralign${platform === 'linux' ? (musl ? '.musl' : '.glibc') : ''}.node`;
    const built = join(folder, name);
    const needs = platform === 'linux' && !musl ? `, needs glibc ${checkFloor(built, tools.objdump)}` : '';
    mkdirSync(join(root, 'prebuilds', target), { recursive: true });
    cpSync(built, join(root, name));
    const size = (statSync(join(root, name)).size / 1024).toFixed(0);
    console.log(`prebuild: ${name}, ${size} KiB${needs}, in ${((Date.now() - start) / 1000).toFixed(0)} s`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const targets = process.argv.slice(2);
  const odd = targets.find((t) => !/^(linux|darwin|win32)-(x64|arm64)$/.test(t));
  if (odd) fail(`${odd}: expected targets such as linux-x64, linux-arm64, darwin-arm64`);
  for (const target of targets.length > 0 ? targets : [here]) {
    try {
      build(target);
    } catch (error) {
      fail(error.message);
    }
  }
}
