/** Options of run.mjs and seed.mjs, how long what takes, and what is refused. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Policies that `--policies` may name. */
export const policyNames = ['oracle', 'learned', 'pessimistic', 'one for all', 'dpo', 'dpo for all'];

export const options = {
  model: { type: 'string', default: '../shared/models/tinystories-656k' },
  text: { type: 'string', default: '../shared/text/tinystories_sample.txt' },
  output: { type: 'string', default: 'runs/voter-policies' },
  seeds: { type: 'string', default: '3' },
  size: { type: 'string', default: 'full' },
  jobs: { type: 'string', default: '2' },
  beta: { type: 'string', default: '0.1' },
  lower: { type: 'string', default: '1' },
  l2: { type: 'string', default: '1' },
  truth: { type: 'string', default: 'linear' },
  pairs: { type: 'string', default: 'random' },
  reward: { type: 'string', default: 'low-rank' },
  policies: { type: 'string', default: policyNames.join(',') },
  rate: { type: 'string', default: '0.004' },
};

/** items: answers to a prompt that are voted on; prompts: a size of examples/soups, which says how many are held out. */
export const sizes = {
  tiny: { steps: 2, batch: 12, items: 2, samples: 1, dpo: 2, prompts: 'tiny' },
  full: { steps: 120, batch: 24, items: 8, samples: 2, dpo: 60, prompts: 'full' },
};

/** Throws an error that says what is allowed, where an option is none of that. */
export function checkChoice(option, found, allowed) {
  if (!allowed.includes(found))
    throw new Error(`--${option}: found ${JSON.stringify(found)}, expected ${allowed.join(', ')}`);
}

/** Keeps what a folder's files are made with, and throws where they are of something else: they would be taken as they are. */
export function holdTo(folder, settings, files) {
  const path = join(folder, 'settings.json');
  const found = existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : null;
  if (found === null && files.some((name) => existsSync(join(folder, name))))
    throw new Error(
      `${folder}: has ${files.join(' or ')}, but no settings.json that says of what; give another --output`,
    );
  for (const [name, value] of Object.entries(found ?? {}))
    if (settings[name] !== value)
      throw new Error(`--${name}: found ${settings[name]}, but ${folder} is of ${value}; give another --output`);
  if (found === null) writeFileSync(path, `${JSON.stringify(settings)}\n`);
}
