#!/usr/bin/env node
/**
 * Does a policy learn its wish within the KL it is allowed? RLOO and PPO, both with the adaptive coefficient of Ziegler et
 * al., on three wishes; prints reward and KL on prompts that were not trained on, over seeds. Stopped, it goes on.
 *
 * usage: node examples/soups/learn.mjs --model DIR --text stories.txt --output DIR [--seeds 3] [--steps 40] [--target 6] [--methods rloo,ppo] [--jobs 2]
 */
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { train } from '../../dist/index.js';
import { asArguments, runJobs } from './jobs.mjs';
import { options, training, wishes, writePrompts } from './settings.mjs';
import { fixed, over } from './table.mjs';

const { values } = parseArgs({
  options: {
    ...options,
    output: { type: 'string', default: 'runs/learn' },
    steps: { type: 'string', default: '40' },
    target: { type: 'string', default: '6' },
    methods: { type: 'string', default: 'rloo,ppo' },
    only: { type: 'string' },
  },
});
const output = resolve(values.output);
const data = writePrompts({ ...values, output });
const methods = values.methods.split(',');
const named = wishes.filter(({ name }) => ['cheerful', 'short', 'rich'].includes(name));
const seeds = Array.from({ length: Number(values.seeds) }, (_, i) => i);
const folder = (method, name, seed) => join(output, `${method}-${name}-${seed}`);
const summary = (dir) => {
  const path = join(dir, 'summary.json');
  return existsSync(path) ? JSON.parse(readFileSync(path, 'utf8')) : null;
};

if (values.only === undefined) {
  const jobs = methods.flatMap((method) =>
    seeds.map((seed) => [...asArguments(values), '--only', `${method} ${seed}`]),
  );
  await runJobs(fileURLToPath(import.meta.url), jobs, Number(values.jobs));
  print();
} else {
  const [method, seed] = values.only.split(' ');
  for (const wish of named) await learn(method, wish, Number(seed));
}

async function learn(method, { name, rewards }, seed) {
  const dir = folder(method, name, seed);
  if (summary(dir)?.finished) return;
  const { rloo: _, train: settings, ...rest } = training({ steps: Number(values.steps), batch: 16 }, seed);
  const target = Number(values.target);
  await train(
    {
      ...rest,
      method,
      model: resolve(values.model),
      data,
      rewards,
      train: { ...settings, learning_rate: 0.002, batch_size: method === 'ppo' ? 64 : 16, log_every: 1 },
      ...(method === 'rloo' ? { rloo: { group_size: 4, beta: 0.25, target } } : { ppo: { beta: 0.25, target } }),
      output: dir,
    },
    { resume: true, quiet: true },
  );
}

function print() {
  console.log(
    'method  wish      reward before → after [95 %]        KL after [95 %]        highest over 10 steps   target   β at the end',
  );
  for (const method of methods)
    for (const { name } of named) {
      const runs = seeds.map((seed) => folder(method, name, seed));
      const found = runs.map((dir) => summary(dir));
      const before = found.map((s) => s.eval_before.overall.reward);
      const after = found.map((s) => s.eval.overall.reward);
      const kl = found.map((s) => s.eval.overall.kl);
      const steps = runs.map((dir) =>
        readFileSync(join(dir, 'metrics.jsonl'), 'utf8')
          .trim()
          .split('\n')
          .map((line) => JSON.parse(line))
          .filter((line) => 'loss' in line),
      );
      const highest = Math.max(
        ...steps.flatMap((lines) =>
          lines.slice(9).map((_, i) => lines.slice(i, i + 10).reduce((sum, line) => sum + line.kl / 10, 0)),
        ),
      );
      const beta = steps.map((lines) => lines.at(-1).beta);
      console.log(
        `${method.padEnd(7)} ${name.padEnd(9)} ${over(before, 2).padStart(20)} → ${over(after, 2).padEnd(20)} ${over(kl, 2).padEnd(22)} ` +
          `${fixed(highest, 2).padEnd(23)} ${values.target.padEnd(8)} ${beta.map((b) => fixed(b)).join(', ')}`,
      );
    }
}
