#!/usr/bin/env node
/**
 * New voters join the reward models of voters.mjs: from a few votes on the debates to train on, what is theirs is fitted
 * (`adapt`), and judged on debates never seen, beside the generic adapter. A seed that is done is not done again.
 *
 * usage: node new-voters.mjs [--data DIR] [--output DIR] [--seeds 5] [--first-seed 0] [--model wu] [--votes 10]
 *                            [--steps N] [--penalty L] [--threads N]
 */
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { adaptVoters, evaluateModel, pairedBootstrap } from 'pluralign';
import { deviation, mean, percent, prepareNewcomers } from './voters-data.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const text = (fallback) => ({ type: 'string', default: fallback });
const { values: options } = parseArgs({
  options: {
    data: text(join(root, '../shared/data/ukp')),
    output: text(join(root, 'runs/ukp-voters')),
    seeds: text('5'),
    'first-seed': text('0'),
    model: text('wu'),
    votes: text('10'),
    steps: { type: 'string' },
    penalty: { type: 'string' },
    threads: text('auto'),
  },
});
const number = (value) => (value === undefined ? undefined : Number(value));

async function newcomers(seed) {
  const { model, votes, steps, penalty } = options;
  const settings = [model, seed, votes, steps ?? 'default', penalty ?? 'default'].join('-');
  const kept = join(options.output, `joined-${settings}.json`);
  if (existsSync(kept)) return JSON.parse(readFileSync(kept, 'utf8'));
  const trained = join(options.output, `${options.model}-${seed}`);
  if (!existsSync(join(trained, 'population.safetensors'))) throw new Error(`${trained}: train it first (voters.mjs)`);
  const data = prepareNewcomers(options.data, join(options.output, `data-${seed}`), seed, Number(options.votes));
  const run = join(options.output, `${options.model}-${seed}-joined`);
  rmSync(run, { recursive: true, force: true });
  for (const name of ['config.yaml', 'metrics.jsonl', 'adapter', 'population.safetensors'])
    cpSync(join(trained, name), join(run, name), { recursive: true });
  const { annotators } = await adaptVoters({
    run,
    votes: [data.train],
    steps: number(options.steps),
    penalty: number(options.penalty),
  });
  const threads = options.threads === 'auto' ? 'auto' : Number(options.threads);
  const { annotators: own, policies } = await evaluateModel({ run, data: [data.eval], threads, dtype: 'float32' });
  const generic = policies.generic.annotators;
  const judged = Object.keys(own).filter((name) => name in annotators);
  const milliseconds = mean(Object.values(annotators).map((a) => a.milliseconds));
  rmSync(run, { recursive: true, force: true });
  const outcome = {
    own: judged.map((name) => own[name].accuracy),
    generic: judged.map((name) => generic[name].accuracy),
    milliseconds,
  };
  writeFileSync(kept, JSON.stringify(outcome));
  return outcome;
}

const seeds = Array.from({ length: Number(options.seeds) }, (_, i) => Number(options['first-seed']) + i);
const outcomes = [];
try {
  for (const seed of seeds) outcomes.push(await newcomers(seed));
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
const spread = (of) => `${percent(mean(outcomes.map(of)))} ± ${percent(deviation(outcomes.map(of)))}`;
const { mean: d, low, high } = pairedBootstrap(outcomes.map(({ own, generic }) => own.map((x, i) => x - generic[i])));
console.log(`${seeds.length} seeds, ${options.votes} votes a voter; accuracy on debates never seen, mean of voters\n`);
console.log('| voters a seed | generic | adapted | difference | milliseconds a voter |');
console.log('|---|---|---|---|---|');
console.log(
  `| ${mean(outcomes.map((o) => o.own.length)).toFixed(1)} | ${spread((o) => mean(o.generic))} | ` +
    `${spread((o) => mean(o.own))} | ${percent(d)} [${percent(low)}, ${percent(high)}] | ` +
    `${mean(outcomes.map((o) => o.milliseconds)).toFixed(0)} |`,
);
