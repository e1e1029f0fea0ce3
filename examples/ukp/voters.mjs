#!/usr/bin/env node
/**
 * Reward models for every voter, with LoRA in the language model: shared start (SI), warm-up (WU), global start (G), one
 * for all (global), one for each (local), over several seeds, and a table of the outcome. What is done is not done again:
 * the same command goes on after an interruption.
 *
 * usage: node voters.mjs [--data DIR] [--model DIR] [--output DIR] [--seeds 5] [--first-seed 0] [--models si,wu,…]
 *                        [--rate 4e-3] [--threads N]
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { pairedBootstrap, train, worstDecile } from 'pluralign';
import { deviation, mean, percent, prepareVoters } from './voters-data.mjs';

const root = fileURLToPath(new URL('../..', import.meta.url));
const text = (fallback) => ({ type: 'string', default: fallback });
const { values: options } = parseArgs({
  options: {
    data: text(join(root, '../shared/data/ukp')),
    model: text(join(root, '../shared/models/tinystories-656k')),
    output: text(join(root, 'runs/ukp-voters')),
    seeds: text('5'),
    'first-seed': text('0'),
    models: text('global,local,si,wu,g,pull'),
    rate: text('4e-3'),
    threads: text('auto'),
  },
});

const names = {
  global: 'global',
  local: 'local',
  si: 'shared B, SI',
  wu: 'shared B, WU',
  g: 'shared B, G',
  pull: 'shared B, WU, penalty 1',
};
const adapters = {
  global: {},
  local: { per: 'annotator' },
  si: { share: 'b' },
  wu: { share: 'b', init: 'warm-up' },
  g: { share: 'b', init: 'global' },
  pull: { share: 'b', init: 'warm-up', penalty: 1 },
};

function config(model, seed, data) {
  return {
    method: 'reward',
    model: options.model,
    data: { ...data, max_length: 512 },
    adapter: { r: 8, alpha: 16, targets: ['q_proj', 'v_proj'], ...adapters[model] },
    train: {
      epochs: 2,
      batch_size: 16,
      learning_rate: Number(options.rate),
      schedule: 'linear',
      dtype: 'float32',
      threads: options.threads === 'auto' ? 'auto' : Number(options.threads),
      seed,
      save_every: 50,
      eval_every: 1_000_000,
      keep_checkpoints: 1,
    },
    output: join(options.output, `${model}-${seed}`),
  };
}

async function outcome(model, seed, data, signal) {
  const given = config(model, seed, data);
  const file = join(given.output, 'summary.json');
  const done = existsSync(file) && JSON.parse(readFileSync(file, 'utf8'));
  if (done?.finished) return done;
  console.error(`${names[model]}, seed ${seed}`);
  return train(given, { resume: true, stop: signal });
}

async function main() {
  const controller = new AbortController();
  process.once('SIGINT', () => controller.abort());
  process.once('SIGTERM', () => controller.abort());
  const models = options.models.split(',');
  const unknown = models.find((model) => !(model in adapters));
  if (unknown) throw new Error(`--models: found ${unknown}, expected some of ${Object.keys(adapters).join(', ')}`);
  const seeds = Array.from({ length: Number(options.seeds) }, (_, i) => Number(options['first-seed']) + i);
  const results = Object.fromEntries(models.map((model) => [model, []]));
  for (const seed of seeds) {
    const data = prepareVoters(options.data, join(options.output, `data-${seed}`), seed);
    for (const model of models) {
      const summary = await outcome(model, seed, data, controller.signal);
      if (!summary.finished) return console.error('stopped; the same command goes on');
      results[model].push(summary);
    }
  }
  const voters = (summary) => Object.values(summary.eval.annotators).map((m) => m.accuracy);
  console.log(`${seeds.length} seeds; means over seeds, ± their standard deviation; a voter counts as one\n`);
  console.log('| | accuracy, mean of voters | worst tenth of voters | log-likelihood | against global |');
  console.log('|---|---|---|---|---|');
  for (const model of models) {
    const runs = results[model];
    const spread = (of, show) => {
      const values = runs.map(of);
      return `${show(mean(values))} ± ${show(deviation(values))}`;
    };
    const differences = runs.map((run, s) => {
      const base = results.global?.[s].eval.annotators ?? {};
      return Object.entries(run.eval.annotators).flatMap(([name, m]) =>
        base[name] ? [m.accuracy - base[name].accuracy] : [],
      );
    });
    const { mean: d, low, high } = pairedBootstrap(differences);
    const against = model === 'global' || !results.global ? '' : `${percent(d)} [${percent(low)}, ${percent(high)}]`;
    const cells = [
      spread((run) => mean(voters(run)), percent),
      spread((run) => worstDecile(voters(run)), percent),
      spread(
        (run) => run.eval.overall.log_likelihood,
        (x) => x.toFixed(4),
      ),
      against,
    ];
    console.log(`| ${names[model]} | ${cells.join(' | ')} |`);
  }
  const seconds = models.map((model) => `${names[model]} ${mean(results[model].map((run) => run.seconds)).toFixed(0)}`);
  console.log(`\nseconds a run: ${seconds.join(', ')}`);
}

await main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
