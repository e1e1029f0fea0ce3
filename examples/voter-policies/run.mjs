#!/usr/bin/env node
/**
 * A policy for each of a dozen people whose true rewards are known: by RLOO on rewards learnt from their votes, with and
 * without pessimism, and by DPO on the votes; beside one policy for all and beside policies that know the true rewards.
 * Prints how much true reward each falls short of the latter. Stopped, it goes on.
 *
 * usage: node examples/voter-policies/run.mjs --model DIR --text stories.txt --output DIR [--seeds 3] [--lower 1] [--jobs 2]
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { pairedBootstrap } from '../../dist/index.js';
import { asArguments, runJobs } from '../soups/jobs.mjs';
import { kinds } from './planted.mjs';
import { options } from './settings.mjs';

const { values } = parseArgs({ options });
const output = resolve(values.output);
mkdirSync(output, { recursive: true });
const seeds = Array.from({ length: Number(values.seeds) }, (_, seed) => seed);
const script = fileURLToPath(new URL('seed.mjs', import.meta.url));
await runJobs(
  script,
  seeds.map((seed) => [...asArguments(values), '--seed', String(seed)]),
  Number(values.jobs),
);

const runs = seeds.map((seed) => JSON.parse(readFileSync(join(output, `seed-${seed}`, 'worth.json'), 'utf8')));
const fixed = (v, digits = 2) => v.toFixed(digits).replace('-', '−');
const interval = (differences) => {
  const { mean, low, high } = pairedBootstrap(differences);
  return `${fixed(mean)} [${fixed(low)}, ${fixed(high)}]`;
};
/** a less b in true reward, by seed and voter; of voters with so many votes, or of all. */
const less = (a, b, votes) =>
  runs.map((run) =>
    run[a].flatMap((entry, u) => (votes && entry.votes !== votes ? [] : [entry.worth - run[b][u].worth])),
  );
const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length;
const lines = [
  `true reward ${runs[0].oracle ? 'short of the policy that knows it' : 'more than the base’s'}, [95 %] over ${seeds.length} seeds and their voters`,
  `${'policy'.padEnd(14)} ${kinds.map((votes) => `${votes} votes each`.padEnd(22)).join('')} ${'everyone'.padEnd(22)} KL`,
];
const known = (names) => names.filter((name) => name in runs[0]);
for (const name of known(['base', 'one for all', 'dpo for all', 'dpo', 'learned', 'pessimistic'])) {
  const cells = [...kinds, null].map((votes) =>
    interval(runs[0].oracle ? less('oracle', name, votes) : less(name, 'base', votes)).padEnd(22),
  );
  const kl = mean(runs.flatMap((run) => run[name].map((entry) => entry.kl)));
  lines.push(`${name.padEnd(14)} ${cells.join('')} ${fixed(kl)}`);
}
if (runs[0].oracle)
  lines.push(`(the oracle’s KL is ${fixed(mean(runs.flatMap((run) => run.oracle.map((entry) => entry.kl))))})`, '');
for (const [a, b] of [
  ['pessimistic', 'learned'],
  ['learned', 'one for all'],
  ['learned', 'dpo'],
]) {
  if (known([a, b]).length < 2) continue;
  const cells = [...kinds, null].map((votes) => interval(less(a, b, votes)).padEnd(22));
  lines.push(`${`${a} less ${b}`.padEnd(26)} ${cells.join('')}`);
}
const worse = (name, votes) =>
  less(name, 'base', votes)
    .map((by) => by.filter((v) => v < 0).length)
    .reduce((a, b) => a + b, 0);
lines.push('');
for (const name of known(['one for all', 'dpo', 'learned', 'pessimistic']))
  lines.push(
    `${`${name}: worse off than with the base`.padEnd(44)} ${kinds.map((votes) => `${worse(name, votes)} of ${less(name, 'base', votes).flat().length} with ${votes} votes`).join(', ')}`,
  );
const each = known(['learned', 'pessimistic', 'dpo', 'one for all']);
const [from, sign] = runs[0].oracle ? ['oracle', 1] : ['base', -1];
lines.push('', `of each voter (votes): ${sign === 1 ? 'short' : 'more than the base'} by ${each.join(', ')}`);
for (const [seed, run] of runs.entries())
  lines.push(
    `seed ${seed}: ${run[from]
      .map(({ votes, worth }, u) => {
        const gaps = each.map((name) => fixed(sign * (worth - run[name][u].worth), 1));
        return `(${votes}) ${gaps.join(' ')}`;
      })
      .join('; ')}`,
  );
console.log(lines.join('\n'));
writeFileSync(join(output, 'table.txt'), `${lines.join('\n')}\n`);
