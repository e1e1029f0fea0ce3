#!/usr/bin/env node
/**
 * What a round of EM over K policies costs, against K epochs of plain DPO on the same rows here, and with --python against K
 * epochs of TRL + PEFT. All reference log-probabilities are scored beforehand on every side. The contestants take turns in
 * one process, the first of a turn changes; the table gives medians.
 *
 * usage: node bench/peers/em.mjs --model DIR --rows pairs.jsonl [--types 4] [--pairs 16] [--batch 4] [--rounds 3]
 *          [--dtype float32|bf16] [--threads 2] [--rank 16] [--python PYTHON]
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { packTokens } from '../../dist/data/pack.js';
import { TypePolicies } from '../../dist/em/language/policies.js';
import { adapterConfig, Bank, groupsOf, Model, readRows, resolveConfig } from '../../dist/index.js';
import { objectiveOf } from '../../dist/methods/index.js';
import { PolicyReference } from '../../dist/training/scorer.js';
import { lossStep } from '../../dist/training/step.js';

const text = { types: '4', pairs: '16', batch: '4', rounds: '3', dtype: 'bf16', threads: '2', rank: '16' };
const { values: given } = parseArgs({
  options: {
    ...Object.fromEntries(Object.entries(text).map(([name, value]) => [name, { type: 'string', default: value }])),
    model: { type: 'string' },
    rows: { type: 'string' },
    python: { type: 'string', default: process.env.PLURALIGN_PYTHON },
  },
});
const [types, pairs, batch, rounds, threads, rank] = ['types', 'pairs', 'batch', 'rounds', 'threads', 'rank'].map(
  (name) => Number(given[name]),
);
const folder = mkdtempSync(join(tmpdir(), 'pluralign-em-round-'));
const lines = readFileSync(given.rows, 'utf8')
  .split('\n')
  .filter((line) => line.trim() !== '');
// Evenly from the whole file, so that lengths are the data's; twice the need, as long rows are left out.
const count = Math.min(lines.length, 2 * pairs);
const rowsFile = join(folder, 'rows.jsonl');
writeFileSync(
  rowsFile,
  Array.from({ length: count }, (_, i) => `${lines[Math.floor((i * lines.length) / count)]}\n`).join(''),
);

const model = await Model.load(given.model, { dtype: given.dtype, threads });
// As many tokens a pass as a run takes.
const maxTokens = packTokens({ max_tokens_per_pack: 'auto', device: 'cpu' }, { model });
const { rows } = await readRows(rowsFile);
const groups = (await groupsOf(rows, model.tokenizer, { maxLength: 512, overLength: 'drop' })).groups.slice(0, pairs);
const config = adapterConfig({ r: rank, alpha: 2 * rank });
const { loss } = resolveConfig({ method: 'em-dpo', model: given.model, data: { train: rowsFile }, output: folder });
const objective = objectiveOf({ method: 'em-dpo', loss });
const reference = new PolicyReference({ model, bank: null, adapter: -1, mixture: null }, true, maxTokens);
await reference.sums(groups, objective);

const adamw = { learningRate: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 1 };
const batches = Array.from({ length: Math.ceil(groups.length / batch) }, (_, i) =>
  groups.slice(i * batch, (i + 1) * batch),
);
const one = Bank.create(model.shape, config, ['default'], { seed: 0 });
const many = Bank.create(
  model.shape,
  config,
  Array.from({ length: types }, (_, k) => `type_${k + 1}`),
  { seed: 0 },
);
const policies = new TypePolicies({
  model,
  bank: many,
  types,
  objective,
  reference,
  beta: loss.beta,
  best: false,
  margin: null,
  maxTokens,
});

async function dpoEpoch() {
  for (const part of batches) {
    one.zeroGrad();
    const options = { maxTokens, checkpoint: false, dropoutSeed: 0 };
    await lossStep(part, objective, { model, bank: one, adapter: 0, mixture: null }, reference, options);
    await one.step(adamw);
  }
}

/** `sharp`: every row is of one type; else all types share every row. */
async function emRound(sharp, incremental) {
  for (const [i, part] of batches.entries()) {
    many.zeroGrad();
    const gamma = Array.from({ length: types }, (_, k) =>
      part.map((__, g) => (sharp ? Number((i * batch + g) % types === k) : 1 / types)),
    );
    const { active } = await policies.gradient({
      groups: part,
      gamma,
      skipBelow: 1e-3,
      scoreAll: incremental,
      shares: new Array(types).fill(1 / types),
      checkpoint: false,
      dropoutSeed: 0,
    });
    for (const type of active) await many.step({ ...adamw, active: [type] });
  }
  if (!incremental) await policies.votes(groups);
}

const contestants = {
  [`${types} DPO epochs`]: dpoEpoch,
  'EM round, exact E-step, all types share every row': () => emRound(false, false),
  'EM round, incremental, all types share every row': () => emRound(false, true),
  'EM round, exact E-step, sharp responsibilities': () => emRound(true, false),
  'EM round, incremental, sharp responsibilities': () => emRound(true, true),
};
const names = Object.keys(contestants);
const seconds = Object.fromEntries(names.map((name) => [name, []]));
/** Processor time of all threads: worth more than the clock where something else runs too. */
const processor = Object.fromEntries(names.map((name) => [name, []]));
const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
};
const load = loadavg()[0];
const peer = [];
await dpoEpoch();
for (let round = 0; round < rounds; round++) {
  for (let i = 0; i < names.length; i++) {
    const name = names[(i + round) % names.length];
    const times = name === names[0] ? types : 1;
    const [started, before] = [performance.now(), process.cpuUsage()];
    await contestants[name]();
    seconds[name].push(((performance.now() - started) / 1e3) * times);
    const { user, system } = process.cpuUsage(before);
    processor[name].push(((user + system) / 1e6) * times);
  }
  if (!given.python) continue;
  const script = join(dirname(fileURLToPath(import.meta.url)), 'trl_dpo.py');
  const steps = batches.length;
  const args = ['--model', given.model, '--rows', rowsFile, '--batch', batch, '--steps', steps, '--warmup', 1].map(
    String,
  );
  args.push('--dtype', given.dtype, '--threads', String(threads), '--rank', String(rank), '--max-length', '512');
  const ran = spawnSync(given.python, [script, ...args, '--precompute-reference'], { encoding: 'utf8' });
  if (ran.status !== 0) throw new Error(ran.stderr.slice(-2000));
  peer.push((types * groups.length) / JSON.parse(ran.stdout.slice(ran.stdout.indexOf('{'))).pairs_per_s);
  console.error(`turn ${round + 1} of ${rounds}`);
}
if (peer.length > 0) seconds[`${types} TRL epochs, scoring passes not counted`] = peer;

const tokens = groups.reduce((n, g) => n + g.prompt.length + g.completions.reduce((m, c) => m + c.length, 0), 0);
console.log(
  `${groups.length} pairs, ${(tokens / groups.length).toFixed(0)} tokens each with the prompt once, batch ${batch}, ` +
    `${given.dtype}, ${threads} threads, LoRA r ${rank}; medians of ${rounds}; load before ${load.toFixed(1)}\n`,
);
const base = [median(seconds[names[0]]), median(processor[names[0]])];
console.log(
  `${''.padEnd(52)}${'clock'.padStart(10)}${'ratio'.padStart(7)}${'processor'.padStart(13)}${'ratio'.padStart(7)}`,
);
for (const [name, values] of Object.entries(seconds)) {
  const cell = (s, i, width) => `${`${s.toFixed(2)} s`.padStart(width)}${(s / base[i]).toFixed(2).padStart(7)}`;
  const second = processor[name] ? cell(median(processor[name]), 1, 13) : '';
  console.log(`${name.padEnd(52)}${cell(median(values), 0, 10)}${second}`);
}
if (peer.length > 0) {
  console.log();
  for (const name of names)
    console.log(`${types} TRL epochs / ${name}: ${(median(peer) / median(seconds[name])).toFixed(1)}`);
}
rmSync(folder, { recursive: true, force: true });
