/** What the experiment trains: wishes about short stories, and how long on what. */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

export const options = {
  model: { type: 'string', default: '../shared/models/tinystories-656k' },
  text: { type: 'string', default: '../shared/text/tinystories_sample.txt' },
  output: { type: 'string', default: 'runs/soups' },
  seeds: { type: 'string', default: '3' },
  size: { type: 'string', default: 'full' },
  jobs: { type: 'string', default: '2' },
  combinations: { type: 'string', default: '3' },
  print: { type: 'boolean', default: false },
};

export const sizes = {
  tiny: { steps: 4, batch: 4, grid: 2, eval: 8, samples: 1 },
  small: { steps: 40, batch: 16, grid: 2, eval: 48, samples: 2 },
  full: { steps: 100, batch: 16, grid: 6, eval: 96, samples: 4 },
};

export function sizeOf(name) {
  if (!sizes[name]) throw new Error(`--size: found ${name}, expected ${Object.keys(sizes).join(', ')}`);
  return sizes[name];
}

/** The first words of stories that begin as stories do: those to be judged on, and those to train on. */
export function writePrompts({ text, output, size }) {
  const { eval: held } = sizeOf(size);
  mkdirSync(output, { recursive: true });
  const starts = readFileSync(text, 'utf8').match(/(?:^|\n\n)(?:Once upon a time|One day)[^.!?\n]*/g) ?? [];
  const words = starts.map((start) => start.trim().split(/\s+/).slice(0, 9).join(' '));
  const prompts = [...new Set(words)].map((prompt) => ({ prompt }));
  if (prompts.length < held + 16) throw new Error(`${text}: found ${prompts.length} beginnings of stories`);
  const write = (name, rows) => {
    const path = join(output, name);
    writeFileSync(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
    return path;
  };
  return { eval: write('eval.jsonl', prompts.slice(0, held)), train: write('train.jsonl', prompts.slice(held)) };
}

/** Rewards are cut at two deviations of the base: a policy that has reached them has nothing to gain from going further. */
const wish = (name, dimension, reward, weight) => ({
  name,
  dimension,
  rewards: [{ ...reward, weight, bound: 2 }],
  prompt: ` (a ${name} story)`,
});
const mood = { type: 'sentiment' };
const length = { type: 'length', unit: 'words' };
const language = { type: 'word_length' };
export const wishes = [
  wish('cheerful', 'mood', mood, 1),
  wish('sad', 'mood', mood, -1),
  wish('short', 'length', length, -1),
  wish('long', 'length', length, 1),
  wish('rich', 'language', language, 1),
  wish('simple', 'language', language, -1),
];

/** One policy's training; answers are cut at 48 tokens, before nearly all of the base's would end. */
export const training = ({ steps, batch }, seed) => ({
  adapter: { r: 8, alpha: 16 },
  rollout: { max_new_tokens: 48, reference_samples: 256 },
  rloo: { group_size: 4, beta: 0.1 },
  train: {
    steps,
    batch_size: batch,
    learning_rate: 0.004,
    schedule: 'constant',
    seed,
    threads: 1,
    save_every: 50,
  },
});

/** The two runs of a seed: experts that start apart, with all that they are compared with, and experts from one A. */
export function runsOf(values, data, seed) {
  const size = sizeOf(values.size);
  const config = (name, soups) => ({
    method: 'soups',
    model: resolve(values.model),
    data,
    ...training(size, seed),
    soups: { wishes, front: ['cheerful', 'short'], grid: size.grid, samples: size.samples, ...soups },
    output: join(resolve(values.output), `${name}-${seed}`),
  });
  const full = seed < Number(values.combinations);
  return {
    own: config('own', {
      merges: ['cat', 'svd', 'factor_average'],
      sums: [1, 1.5],
      logits: ['reverse-kl'],
      mixing: 0.8,
      combinations: full,
      baselines: full ? ['prompting', 'sft', 'one_reward', 'p_morl', 'morl', 'backbones'] : ['morl', 'backbones'],
    }),
    shared: config('shared', { init: 'shared', merges: ['cat', 'factor_average'] }),
  };
}
