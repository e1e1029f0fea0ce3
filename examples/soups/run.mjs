#!/usr/bin/env node
/**
 * Wishes about short stories (cheerful or sad, short or long, rich or simple words): an expert for each, mixes of them, and
 * what they are compared with. Prints, over seeds, the table of mixes by hypervolume and who wins on the eight combinations.
 * Stopped, the same command goes on where it was.
 *
 * usage: node examples/soups/run.mjs --model DIR --text stories.txt --output DIR
 *   [--seeds 3] [--size small|full] [--threads 2] [--combinations 1 (seeds that compare all eight)]
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { train } from '../../dist/index.js';

const { values } = parseArgs({
  options: {
    model: { type: 'string', default: '../shared/models/tinystories-656k' },
    text: { type: 'string', default: '../shared/text/tinystories_sample.txt' },
    output: { type: 'string', default: 'runs/soups' },
    seeds: { type: 'string', default: '3' },
    size: { type: 'string', default: 'full' },
    threads: { type: 'string', default: 'auto' },
    combinations: { type: 'string', default: '1' },
  },
});
const sizes = {
  tiny: { steps: 4, batch: 4, grid: 2, eval: 8, samples: 1 },
  small: { steps: 30, batch: 4, grid: 2, eval: 32, samples: 2 },
  full: { steps: 150, batch: 16, grid: 6, eval: 96, samples: 4 },
};
const size = sizes[values.size];
if (!size) throw new Error(`--size: found ${values.size}, expected ${Object.keys(sizes).join(', ')}`);
const output = resolve(values.output);
mkdirSync(output, { recursive: true });

/** The first words of stories that begin as stories do. */
function writePrompts() {
  const text = readFileSync(values.text, 'utf8');
  const starts = text.match(/(?:^|\n\n)(?:Once upon a time|One day)[^.!?\n]*/g) ?? [];
  const words = starts.map((start) => start.trim().split(/\s+/).slice(0, 9).join(' '));
  const prompts = [...new Set(words)].map((prompt) => ({ prompt }));
  if (prompts.length < size.eval + 16) throw new Error(`${values.text}: found ${prompts.length} beginnings of stories`);
  const write = (name, rows) => {
    const path = join(output, name);
    writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
    return path;
  };
  return {
    eval: write('eval.jsonl', prompts.slice(0, size.eval)),
    train: write('train.jsonl', prompts.slice(size.eval)),
  };
}

const wish = (name, dimension, reward, weight) => ({
  name,
  dimension,
  rewards: [{ ...reward, weight }],
  prompt: ` (a ${name} story)`,
});
const mood = { type: 'sentiment' };
const length = { type: 'length', unit: 'words' };
const language = { type: 'word_length' };
const wishes = [
  wish('cheerful', 'mood', mood, 1),
  wish('sad', 'mood', mood, -1),
  wish('short', 'length', length, -1),
  wish('long', 'length', length, 1),
  wish('rich', 'language', language, 1),
  wish('simple', 'language', language, -1),
];

const data = writePrompts();
const config = (seed, name, soups) => ({
  method: 'soups',
  model: resolve(values.model),
  data,
  adapter: { r: 8, alpha: 16 },
  rollout: { max_new_tokens: 48, reference_samples: 256 },
  rloo: { group_size: 4, beta: 0.1 },
  train: {
    steps: size.steps,
    batch_size: size.batch,
    learning_rate: 0.002,
    schedule: 'constant',
    seed,
    threads: values.threads === 'auto' ? 'auto' : Number(values.threads),
    save_every: 50,
  },
  soups: { wishes, front: ['cheerful', 'short'], grid: size.grid, samples: size.samples, ...soups },
  output: join(output, `${name}-${seed}`),
});

const controller = new AbortController();
process.once('SIGINT', () => controller.abort());
async function result(given) {
  await train(given, { resume: true, stop: controller.signal, quiet: !process.stderr.isTTY });
  return JSON.parse(readFileSync(join(given.output, 'soups.json'), 'utf8'));
}

const seeds = Array.from({ length: Number(values.seeds) }, (_, i) => i);
const compared = Number(values.combinations);
const runs = [];
const started = Date.now();
for (const seed of seeds) {
  const full = seed < compared;
  const own = await result(
    config(seed, 'own', {
      merges: ['cat', 'svd', 'factor_average'],
      sums: [1, 1.5],
      logits: ['reverse-kl'],
      mixing: 0.8,
      combinations: full,
      baselines: full ? ['prompting', 'sft', 'one_reward', 'p_morl', 'morl', 'backbones'] : ['morl', 'backbones'],
    }),
  );
  const shared = await result(config(seed, 'shared', { init: 'shared', merges: ['cat', 'factor_average'] }));
  runs.push({ own, shared });
}

const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length;
const fixed = (v, digits = 3) => v.toFixed(digits).replace('-', '−');
const front = (of, name) => of.fronts.find((f) => f.name === name);
const rows = [
  ['chord', ({ own }) => front(own, 'chord')],
  ['average of updates', ({ own }) => front(own, 'cat')],
  ['  experts from one A', ({ shared }) => front(shared, 'cat')],
  ['  best rank 8 (SVD)', ({ own }) => front(own, 'svd')],
  ['factor average', ({ own }) => front(own, 'factor_average')],
  ['  experts from one A', ({ shared }) => front(shared, 'factor_average')],
  ['logit mixing', ({ own }) => front(own, 'logits')],
  ['average of updates, Σw up to 1.5', ({ own }) => front(own, 'cat, Σw up to 1.5')],
  ['Bone-Soup backbones .8/.2', ({ own }) => front(own, 'backbones')],
  ['MORL at each weight', ({ own }) => front(own, 'morl')],
];
const lines = [
  `${'mix'.padEnd(34)} hypervolume / MORL, mean [least, most] over ${seeds.length} seeds   over the chord   rank correlation`,
];
for (const [name, of] of rows) {
  const found = runs.map(of);
  if (found.some((f) => !f)) continue;
  const shares = runs.map((run) => of(run).hypervolume / front(run.own, 'morl').hypervolume);
  const range = `${fixed(mean(shares))} [${fixed(Math.min(...shares))}, ${fixed(Math.max(...shares))}]`;
  const margin = found[0].chord_margin ? fixed(mean(found.map((f) => f.chord_margin.mean))) : '–';
  lines.push(
    `${name.padEnd(34)} ${range.padEnd(50)} ${margin.padStart(14)} ${fixed(mean(found.map((f) => f.controllability)), 2).padStart(18)}`,
  );
}
lines.push(
  '',
  `${'expert'.padEnd(10)} its wish, in deviations of the base: base → expert (KL in nats), mean over seeds`,
);
for (const { name } of runs[0].own.experts) {
  const of = runs.map(({ own }) => own.experts.find((e) => e.name === name)).filter(Boolean);
  const at = runs[0].own.wishes.indexOf(name);
  lines.push(
    `${name.padEnd(10)} ${fixed(mean(runs.map(({ own }) => own.base[at])), 2)} → ${fixed(mean(of.map((e) => e.objectives[at])), 2)} (${fixed(mean(of.map((e) => e.kl)), 2)})`,
  );
}
for (const { own } of runs.filter((run) => run.own.combinations)) {
  const { policies, matrix, objectives } = own.combinations;
  lines.push('', 'soup against     wins on the eight combinations [95 %]   worth of the row to the chosen wishes');
  policies.forEach((name, p) => {
    const worth = fixed(mean(objectives.map((row) => row[p])), 2);
    const w = matrix[0][p];
    const text = w
      ? `${fixed(100 * w.rate, 1)} % [${fixed(100 * w.interval[0], 1)}, ${fixed(100 * w.interval[1], 1)}]`
      : '–';
    lines.push(`${name.padEnd(16)} ${text.padEnd(38)} ${worth}`);
  });
}
lines.push(
  '',
  `${values.size}: ${size.steps} steps of ${size.batch} prompts × 4, ${((Date.now() - started) / 60000).toFixed(1)} min`,
);
console.log(lines.join('\n'));
writeFileSync(join(output, 'table.txt'), `${lines.join('\n')}\n`);
