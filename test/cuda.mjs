// Everything about the CUDA library on one machine, part by part, each within its time and none ending the others. For a bare
// machine with nvcc, CMake and Node: it needs dist/, build/Release/pluralign.node and the package's own dependencies in
// node_modules, and no registry; parts against PyTorch need a python3 with torch, transformers and peft (PLURALIGN_PYTHON).
//   node test/cuda.mjs                     every part; without a GPU up to the first launch
//   node test/cuda.mjs --only parity,ops   some; results of the others stay in the file
//   node test/cuda.mjs --emulated          parts that show results rather than speed, on the emulated library; no nvcc, no GPU
//   node test/cuda.mjs --minutes 9         a budget: parts that no longer fit are left out and said to be unproven
// Results are kept in cuda-results.json in the folder that OUT names (else build/), rewritten after each part.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { deviceTests } from '../native/compile.mjs';
import { buildCuda, libraryPath, resourceTable } from '../native/cuda/build.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const { values: options } = parseArgs({
  options: { only: { type: 'string' }, emulated: { type: 'boolean' }, minutes: { type: 'string', default: '60' } },
});
const { emulated = false } = options;
const start = Date.now();
const seconds = () => (Date.now() - start) / 1000;
const budget = Number(options.minutes) * 60;
const folder = process.env.OUT ?? join(root, 'build');
mkdirSync(folder, { recursive: true });
const file = join(folder, 'cuda-results.json');
const results = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {};
const library = libraryPath(emulated);
const python = process.env.PLURALIGN_PYTHON ?? 'python3';
const env = { ...process.env, PLURALIGN_CUDA_LIBRARY: library };
process.env.PLURALIGN_CUDA_LIBRARY = library;

/**
 * Runs a program with its output shown and, afterwards, read: "N passed, M failed", and every line that is a JSON object.
 * What did not end in time, or ended badly, throws.
 */
function run(command, args, limit) {
  const most = Math.max(1, Math.floor(limit));
  // `timeout` ends the whole group: what a sanitizer or a benchmark started must not go on beside the next part.
  const child = spawnSync('timeout', ['-s', 'KILL', String(most), command, ...args], {
    ...{ cwd: root, env, encoding: 'utf8', maxBuffer: 1 << 28, stdio: ['ignore', 'pipe', 'inherit'] },
  });
  const text = child.stdout ?? '';
  process.stdout.write(text);
  const counted = /^(\d+) passed, (\d+) failed$/m.exec(text);
  const failures = text.split('\n').filter((line) => line.startsWith('FAIL'));
  const records = text.split('\n').flatMap((line) => (line.startsWith('{') ? [JSON.parse(line)] : []));
  const outcome = { passed: Number(counted?.[1] ?? 0), failed: Number(counted?.[2] ?? 0), failures, records };
  if (child.status === 137 || child.signal === 'SIGKILL')
    return { ...outcome, error: `killed, after ${most} s at most` };
  if (child.error) return { ...outcome, error: child.error.message };
  if (child.status !== 0) return { ...outcome, error: `exit status ${child.status}` };
  return outcome;
}
const node = (args, limit) => run(process.execPath, args, limit);
const works = (command, args = ['--version']) => spawnSync(command, args, { stdio: 'ignore' }).status === 0;
let torch;
function hasTorch() {
  torch ??= works(python, ['-c', 'import torch, transformers, peft; assert torch.cuda.is_available()']);
  return torch;
}

let tests;
async function operators(args, limit) {
  tests ??= await deviceTests();
  return run(tests, [library, ...args], limit);
}
async function sanitizer(tool, limit) {
  if (!works('compute-sanitizer')) return { missing: 'compute-sanitizer is not on PATH' };
  tests ??= await deviceTests();
  return run('compute-sanitizer', ['--tool', tool, '--error-exitcode', '9', tests, library, '--odd'], limit);
}
const peers = (what) => (limit) =>
  hasTorch()
    ? node(['bench/peers/cuda.mjs', ...what, '--seconds', String(Math.floor(limit - 5))], limit)
    : { missing: `${python} has no torch that sees a GPU, or no transformers and peft` };

const graphs = (limit) =>
  node(
    ['test/cuda-graphs.mjs', '--seconds', String(Math.floor(limit - 5)), '--shapes', emulated ? '' : '135m,1b'],
    limit,
  );

/** What there is to show: name, most seconds, whether the emulator can, what it proves, how. Most important first. */
const parts = [
  ['ops', 120, true, 'operators and their gradients, odd shapes', (s) => operators(['--odd'], s)],
  ['real', 120, false, 'operators at the sizes of an 8B model', (s) => operators(['--real'], s)],
  ['parity', 120, true, 'PyTorch fixtures and three training steps', (s) => node(['test/cuda-parity.mjs'], s)],
  ['train', 90, true, 'runs with steps on the device, stopped and resumed', (s) => node(['test/cuda-train.mjs'], s)],
  ['generation', 90, true, 'texts as the CPU says them', (s) => node(['test/cuda-generation.mjs'], s)],
  ['graphs', 90, true, 'steps replayed from CUDA graphs as launched, and their speed', graphs],
  ['memcheck', 120, false, 'no access out of bounds', (s) => sanitizer('memcheck', s)],
  ['racecheck', 120, false, 'no race in shared memory', (s) => sanitizer('racecheck', s)],
  ['times', 90, false, 'speed of every operator', (s) => operators(['--times', '--seconds', '0.1'], s)],
  ['step-135m', 100, false, 'DPO steps beside PyTorch + PEFT, 135M', peers(['step', '135m'])],
  ['step-1b', 120, false, 'DPO steps beside PyTorch + PEFT, 1B', peers(['step', '1b'])],
  ['step-8b', 180, false, 'DPO steps beside PyTorch + PEFT, 8B', peers(['step', '8b'])],
  ['lora', 90, false, 'grouped low-rank products beside PyTorch', peers(['lora'])],
  ['attention', 60, false, 'attention beside SDPA', peers(['attention'])],
  ['texts', 120, false, 'generation under 64 adapters beside PyTorch + PEFT', peers(['generate'])],
];

function say(name, result) {
  results[name] = { ...result, device: emulated ? 'emulated' : 'cuda' };
  writeFileSync(file, `${JSON.stringify(results)}\n`);
}

const wanted = options.only?.split(',');
const unknown = wanted?.filter((name) => name !== 'build' && !parts.some((p) => p[0] === name)) ?? [];
if (unknown.length > 0) {
  console.error(`no part ${unknown.join(', ')}; there are ${parts.map((p) => p[0]).join(', ')}`);
  process.exit(2);
}
const chosen = parts.filter(([name, , onEmulator]) => (wanted?.includes(name) ?? true) && (!emulated || onEmulator));
for (const needed of ['dist/index.js', 'build/Release/pluralign.node'])
  if (!existsSync(join(root, needed))) {
    console.error(`${needed} is not there: run npm run build, here or where this folder came from`);
    process.exit(1);
  }

let [passed, failed] = [0, 0];
const unproven = parts.filter((p) => !chosen.includes(p)).map(([name, , , what]) => `${name}: ${what} (not asked for)`);
function end() {
  if (unproven.length > 0) console.log(`Unproven by this run:\n  ${unproven.join('\n  ')}`);
  console.log(`results: ${file}`);
  console.log(`${passed} passed, ${failed} failed`);
  console.log(`total: ${seconds().toFixed(0)} s`);
  process.exit(failed === 0 ? 0 : 1);
}

console.log('== build');
try {
  const { resources } = buildCuda(emulated);
  if (!emulated) console.log(resourceTable(resources));
  const spilling = resources.filter((r) => r[3] > 0);
  say('build', { seconds: seconds(), spilling });
  passed++;
  if (spilling.length > 0) failed++;
} catch (error) {
  console.error(error.message);
  failed++;
  end();
}
console.log(`== build: ${seconds().toFixed(0)} s\n`);
node(['dist/cli/main.js', 'doctor'], 60);

const { describeCuda } = await import('../dist/native/device.js');
const { reason } = describeCuda();
if (reason) {
  console.log(`Here it ends: the next step starts kernels, and ${reason}.`);
  unproven.push(...chosen.map(([name, , , what]) => `${name}: ${what} (${reason})`));
  end();
}
for (const [name, most, , what, show] of chosen) {
  const left = budget - seconds();
  if (left < 15) {
    unproven.push(`${name}: ${what} (no time was left)`);
    continue;
  }
  const begin = Date.now();
  console.log(`== ${name}: ${what}`);
  let result;
  try {
    result = await show(Math.min(most, left - 5));
  } catch (error) {
    result = { passed: 0, failed: 0, failures: [], records: [], error: error.message };
  }
  const took = (Date.now() - begin) / 1000;
  say(name, { ...result, seconds: took });
  if (result.missing) {
    unproven.push(`${name}: ${what} (${result.missing})`);
    console.log(`== ${name}: not run, ${result.missing}\n`);
    continue;
  }
  const bad = result.failed || (result.error ? 1 : 0);
  passed += result.passed || (bad ? 0 : 1);
  failed += bad;
  if (result.error) unproven.push(`${name}: ${what} (${result.error})`);
  console.log(`== ${name}: ${bad ? `FAILED (${result.error ?? `${bad} checks`})` : 'done'} in ${took.toFixed(0)} s\n`);
}
end();
