// Builds the addon with node-gyp into build/Release, where anything it is made of is newer than it. Prints one line; the
// log only on failure.
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const binary = join(root, 'build/Release/pluralign.node');

/** Environment in which node-gyp takes Node's headers from beside the running Node, where they are, and downloads nothing. */
export function headers() {
  if (process.env.npm_config_nodedir) return {};
  for (const node of [process.execPath, realpathSync(process.execPath)]) {
    const prefix = dirname(dirname(node));
    if (existsSync(join(prefix, 'include/node/node_api.h'))) return { npm_config_nodedir: prefix };
  }
  return {};
}

function newestSource() {
  let newest = 0;
  const see = (path) => {
    newest = Math.max(newest, statSync(path).mtimeMs);
  };
  const native = readdirSync(join(root, 'native'), { withFileTypes: true, recursive: true });
  for (const entry of native) if (/\.(cc|c|h|inl|json)$/.test(entry.name)) see(join(entry.parentPath, entry.name));
  see(join(root, 'binding.gyp'));
  see(join(root, 'node_modules/node-addon-api/package.json'));
  return newest;
}

const fresh = () => existsSync(binary) && statSync(binary).mtimeMs > newestSource();

/** Two builds in one folder break each other, so the second waits. A lock whose process is gone counts for nothing. */
function lock() {
  const path = join(root, 'node_modules/.pluralign-build');
  for (let waited = false; ; ) {
    try {
      writeFileSync(path, String(process.pid), { flag: 'wx' });
      return () => rmSync(path, { force: true });
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    let owner = 0;
    try {
      owner = Number(readFileSync(path, 'utf8'));
      if (owner > 0) process.kill(owner, 0);
    } catch (error) {
      if (error.code === 'ESRCH') rmSync(path, { force: true });
      if (error.code === 'ESRCH' || error.code === 'ENOENT') continue;
    }
    if (!waited) console.log(`native: waiting for the build of process ${owner}`);
    waited = true;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200);
  }
}

function build(args) {
  const start = Date.now();
  if (args.length === 0 && fresh()) return 0;
  const unlock = lock();
  try {
    return args.length === 0 && fresh() ? 0 : compile(args, start);
  } finally {
    unlock();
  }
}

function compile(args, start) {
  const gyp = createRequire(import.meta.url).resolve('node-gyp/bin/node-gyp.js');
  const verbs = existsSync(join(root, 'build/Makefile')) ? ['configure', 'build'] : ['rebuild'];
  const run = spawnSync(process.execPath, [gyp, ...verbs, '--jobs', String(availableParallelism()), ...args], {
    cwd: root,
    env: { ...process.env, ...headers() },
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (run.status !== 0) {
    process.stderr.write(`${run.stdout ?? ''}${run.stderr ?? ''}${run.error ? `${run.error.message}\n` : ''}`);
    console.error(
      'native: the build failed. It needs a C++20 compiler (g++ 11 or clang 14), make, Python 3, and the headers of Node ' +
        '(beside it, under npm_config_nodedir, or from the network).',
    );
    return 1;
  }
  // make leaves the binary alone where a source was touched without a change; one edited during the build is still newer.
  if (args.length === 0) utimesSync(binary, new Date(start), new Date(start));
  console.log(`native: built build/Release/pluralign.node in ${((Date.now() - start) / 1000).toFixed(0)} s`);
  return 0;
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  process.exitCode = build(process.argv.slice(2));
}
