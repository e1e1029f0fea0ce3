#!/usr/bin/env node
/**
 * RLOO beside TRL's RLOOTrainer on the CPU: same model, prompts, rank, batch, group and length, float32, same threads. The
 * two alternate; the line gives the median of the ratios of samples a second, and each side's median. The same by processor
 * time stands beside it, which other work on the machine spoils less.
 *
 * usage: PLURALIGN_PYTHON=python node bench/peers/rloo.mjs --model DIR --rows prompts.jsonl [--rounds 3] [--steps 30] [--threads 2]
 *          [--dtype float32|bf16]
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const here = dirname(fileURLToPath(import.meta.url));
const number = (value) => ({ type: 'string', default: value });
const { values } = parseArgs({
  options: {
    model: { type: 'string' },
    rows: { type: 'string' },
    rounds: number('3'),
    steps: number('30'),
    batch: number('8'),
    group: number('4'),
    tokens: number('48'),
    rank: number('8'),
    threads: number('2'),
    dtype: { type: 'string', default: 'float32' },
    config: { type: 'string' },
    python: { type: 'string', default: process.env.PLURALIGN_PYTHON ?? 'python3' },
  },
});
if (values.config) {
  await measured(JSON.parse(readFileSync(values.config, 'utf8')));
  process.exit();
}
if (!values.model || !values.rows) throw new Error('--model and --rows are needed');
const count = (name) => Number(values[name]);
const folder = mkdtempSync(join(tmpdir(), 'pluralign-rloo-'));

function run(program, args) {
  const found = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 1 << 28 });
  if (found.status !== 0) throw new Error(`${program} ${args.join(' ')}: exit ${found.status}\n${found.stderr}`);
  return JSON.parse(found.stdout.slice(found.stdout.indexOf('{')));
}

/** Trains here, and says what the steps behind the first took, as the other side does: a run of that one alone is taken off. */
async function measured(config) {
  const { train } = await import('../../dist/index.js');
  const { steps, batch_size } = config.train;
  const each = batch_size * config.rloo.group_size;
  const spent = async (name, count) => {
    const before = process.cpuUsage();
    const output = `${config.output}-${name}`;
    const summary = await train({ ...config, train: { ...config.train, steps: count }, output }, { quiet: true });
    const { user, system } = process.cpuUsage(before);
    return { cpu: (user + system) / 1e6, wall: (count * each) / summary.train.samples_per_second, output };
  };
  await spent('warm', 1);
  const first = await spent('first', 1);
  const all = await spent('all', steps);
  const lines = readFileSync(join(all.output, 'metrics.jsonl'), 'utf8').trim().split('\n').map(JSON.parse);
  const samples = (steps - 1) * each;
  console.log(
    JSON.stringify({
      samples_per_s: samples / (all.wall - first.wall),
      samples_per_cpu_s: samples / (all.cpu - first.cpu),
      mean_tokens: lines.reduce((sum, line) => sum + line.completion_length, 0) / lines.length,
    }),
  );
}

function ours(round) {
  const output = join(folder, `run-${round}`);
  const config = {
    method: 'rloo',
    model: resolve(values.model),
    data: { train: resolve(values.rows) },
    adapter: { r: count('rank'), alpha: 2 * count('rank') },
    rewards: [{ type: 'length', unit: 'characters', normalise: false, bound: 100000 }],
    rollout: { max_new_tokens: count('tokens') },
    rloo: { group_size: count('group') },
    train: {
      steps: 1 + count('steps'),
      batch_size: count('batch'),
      learning_rate: 0.002,
      schedule: 'constant',
      dtype: values.dtype,
      threads: count('threads'),
      save_every: null,
      log_every: 1,
    },
    output,
  };
  const path = join(folder, `rloo-${round}.json`);
  writeFileSync(path, JSON.stringify(config));
  return run(process.execPath, [fileURLToPath(import.meta.url), '--config', path]);
}

function theirs() {
  const options = ['steps', 'batch', 'group', 'tokens', 'rank', 'threads', 'dtype'].flatMap((name) => [
    `--${name}`,
    values[name],
  ]);
  return run(values.python, [join(here, 'trl_rloo.py'), '--model', values.model, '--rows', values.rows, ...options]);
}

const median = (v) => [...v].sort((a, b) => a - b)[Math.floor(v.length / 2)];
const rounds = [];
try {
  for (let round = 0; round < count('rounds'); round++) {
    const sides = round % 2 ? [theirs(), ours(round)].reverse() : [ours(round), theirs()];
    rounds.push(sides);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
const [mine, other] = [0, 1].map((side) => median(rounds.map((pair) => pair[side].samples_per_s)));
const ratio = median(rounds.map(([a, b]) => a.samples_per_s / b.samples_per_s));
const [cpu, otherCpu] = [0, 1].map((side) => median(rounds.map((pair) => pair[side].samples_per_cpu_s)));
const byCpu = median(rounds.map(([a, b]) => a.samples_per_cpu_s / b.samples_per_cpu_s));
const tokens = [0, 1].map((side) => median(rounds.map((pair) => pair[side].mean_tokens)).toFixed(1));
console.log(
  `RLOO, ${values.batch} prompts × ${values.group}, at most ${values.tokens} tokens, rank ${values.rank}, ${values.dtype}, ${values.threads} threads, ` +
    `${rounds.length} rounds: ${mine.toFixed(1)} samples/s against ${other.toFixed(1)}, ${ratio.toFixed(1)} times ` +
    `(by processor time ${cpu.toFixed(1)} against ${otherCpu.toFixed(1)}, ${byCpu.toFixed(1)} times; mean tokens of a sample: ${tokens.join(' and ')})`,
);
