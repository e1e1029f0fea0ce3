// Training runs on one device, where steps are taken, beside the CPU's: losses and parameters of adapters and of all weights; a run
// that is stopped and resumed writes the bytes, moments too, of one that is not. Prints a line for each; exit status 1
// where one is off. usage: node test/cuda-train.mjs [device; default cuda]
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { train } from '../dist/index.js';

const device = process.argv[2] ?? 'cuda';
const fixture = fileURLToPath(new URL('fixtures/parity-qwen2', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'pluralign-cuda-'));
let [passed, failed] = [0, 0];

function line(name, good, found) {
  good ? passed++ : failed++;
  console.log(`${good ? 'ok  ' : 'FAIL'} ${name}: ${found}`);
}

const config = (name, where, adapter) => ({
  method: 'dpo',
  model: join(fixture, 'model'),
  data: { train: join(fixture, 'prefs.jsonl') },
  adapter,
  loss: { type: 'sigmoid', beta: 0.3 },
  train: {
    ...{ epochs: 2, batch_size: 2, learning_rate: 1e-3, schedule: 'linear', weight_decay: 0.1, max_grad_norm: 0.5 },
    ...{ log_every: 1, save_every: 3, dtype: 'float32', device: where, seed: 5 },
  },
  output: join(folder, name),
});

const metricsOf = (run) => {
  const file = join(run, 'metrics.jsonl');
  if (!existsSync(file)) return [];
  const whole = readFileSync(file, 'utf8').split('\n').slice(0, -1);
  return whole.map((text) => JSON.parse(text)).filter((m) => m.loss !== undefined);
};
/** Of the last checkpoint. */
function state(run, name) {
  const steps = readdirSync(join(run, 'checkpoints')).map((step) => Number(step.replace('step-', '')));
  return readFileSync(join(run, 'checkpoints', `step-${Math.max(...steps)}`, name));
}
const floats = (bytes) => new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
/** ‖a - b‖ / ‖b‖ */
function apart(a, b) {
  let [difference, size] = [0, 0];
  for (let i = 0; i < a.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    size += b[i] ** 2;
  }
  return Math.sqrt(difference / size);
}

/** Stopped once it has logged so many steps, then resumed. */
async function interrupted(wanted, after) {
  const stop = new AbortController();
  const watch = setInterval(() => metricsOf(wanted.output).length >= after && stop.abort(), 2);
  const { finished, steps } = await train(wanted, { quiet: true, stop: stop.signal });
  clearInterval(watch);
  await train(wanted, { quiet: true, resume: true });
  return finished ? null : steps;
}

for (const [name, adapter] of [
  ['adapter', { init_from: join(fixture, 'adapter') }],
  ['full', 'full'],
]) {
  const [mine, parts, cpu] = [
    config(name, device, adapter),
    config(`${name}-parts`, device, adapter),
    config(`${name}-cpu`, 'cpu', adapter),
  ];
  await train(mine, { quiet: true });
  await train(cpu, { quiet: true });
  const losses = metricsOf(mine.output).map(({ loss }, i) => Math.abs(loss - metricsOf(cpu.output)[i].loss));
  const most = Math.max(...losses);
  line(
    `${name}, losses of ${losses.length} steps beside the CPU's`,
    most < 1e-4 && losses.length > 5,
    most.toExponential(1),
  );
  for (const [file, limit] of [
    ['parameters.f32', 1e-6],
    ['m.f32', 1e-4],
    ['v.f32', 1e-4],
  ]) {
    const off = apart(floats(state(mine.output, file)), floats(state(cpu.output, file)));
    line(`${name}, ${file} beside the CPU's`, off < limit, `${off.toExponential(1)} (below ${limit})`);
  }
  const stopped = await interrupted(parts, 4);
  const same = ['parameters.f32', 'm.f32', 'v.f32', 'steps.i32'].filter((file) =>
    state(parts.output, file).equals(state(mine.output, file)),
  );
  line(
    `${name}, stopped and resumed`,
    stopped !== null && same.length === 4,
    stopped === null ? 'it ended before it could be stopped' : `after step ${stopped}, equal: ${same.join(' ')}`,
  );
}
rmSync(folder, { recursive: true });
console.log(`${passed} passed, ${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
