/** What the runs of all seeds came to, as text. */
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { sizeOf } from './settings.mjs';

const mean = (v) => v.reduce((a, b) => a + b, 0) / v.length;
export const fixed = (v, digits = 3) => v.toFixed(digits).replace('-', '−');
/** Student's t at 97.5 %, by degrees of freedom. */
const t975 = [Number.NaN, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];

/** Mean and 95 % interval over seeds (Student's t). */
export function over(v, digits = 3) {
  const n = v.length;
  const m = mean(v);
  if (n < 2) return `${fixed(m, digits)}`;
  const s = Math.sqrt(v.reduce((sum, x) => sum + (x - m) ** 2, 0) / (n - 1));
  const half = ((t975[n - 1] ?? 1.96) * s) / Math.sqrt(n);
  return `${fixed(m, digits)} [${fixed(m - half, digits)}, ${fixed(m + half, digits)}]`;
}

const front = (of, name) => of.fronts.find((f) => f.name === name);
const json = (...path) => JSON.parse(readFileSync(join(...path), 'utf8'));

/** Answers of logit mixing with all weight on one expert that are worth, to every wish, just what the expert's are. */
function oneHot(dir, wishes) {
  const points = readFileSync(join(dir, 'points.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  const by = (id) => points.find((point) => point.id === id);
  let [same, all] = [0, 0];
  for (const name of wishes) {
    const [mixed, expert] = [by(`logits reverse-kl ${name}1`), by(`expert ${name}`)];
    mixed.each[0].forEach((_, i) => {
      all++;
      if (mixed.each.every((values, k) => values[i] === expert.each[k][i])) same++;
    });
    if (JSON.stringify(mixed.answers) !== JSON.stringify(expert.answers)) same = Number.NaN;
  }
  return { same, all };
}

export function table(values) {
  const size = sizeOf(values.size);
  const output = resolve(values.output);
  const finished = (seed) =>
    ['own', 'shared'].every((name) => existsSync(join(output, `${name}-${seed}`, 'soups.json')));
  const seeds = Array.from({ length: Number(values.seeds) }, (_, i) => i).filter(finished);
  if (seeds.length === 0) return 'no seed is finished yet';
  const runs = seeds.map((seed) => ({
    own: json(output, `own-${seed}`, 'soups.json'),
    shared: json(output, `shared-${seed}`, 'soups.json'),
  }));
  const share = (of) => runs.map((run) => of(run).hypervolume / front(run.own, 'morl').hypervolume);
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
    `${'mix'.padEnd(34)} ${`hypervolume / MORL, mean [95 %] of ${seeds.length}`.padEnd(36)} ${'over the chord'.padEnd(24)} rank correlation`,
  ];
  for (const [name, of] of rows) {
    const found = runs.map(of);
    const margin = found[0].chord_margin ? over(found.map((f) => f.chord_margin.mean)) : '–';
    lines.push(
      `${name.padEnd(34)} ${over(share(of)).padEnd(36)} ${margin.padEnd(24)} ${fixed(mean(found.map((f) => f.controllability)), 2)}`,
    );
  }
  const difference = (a, b) => {
    const [x, y] = [share(rows[a][1]), share(rows[b][1])];
    const d = x.map((value, i) => value - y[i]);
    return `${over(d)}; by seed ${d.map((v) => fixed(v)).join(', ')}`;
  };
  const same = runs.map(({ own }, i) => oneHot(join(output, `own-${seeds[i]}`), own.front));
  lines.push(
    '',
    `(i)   average of updates less chord             ${difference(1, 0)}`,
    `(ii)  average of updates less factor average    ${difference(1, 4)}`,
    `      experts from one A: the same              ${difference(2, 5)}`,
    `(iii) backbones over MORL                       ${over(share(rows[8][1]))}; by seed ${share(rows[8][1])
      .map((v) => fixed(v))
      .join(', ')}`,
    `(iv)  logit mixing at one-hot weights           ${same.reduce((n, s) => n + s.same, 0)} of ${same.reduce((n, s) => n + s.all, 0)} answers worth what the expert’s are`,
    '',
    `${'expert'.padEnd(10)} its wish, in deviations of the base: base → expert [95 %], KL in nats, over seeds`,
  );
  for (const { name } of runs[0].own.experts) {
    const of = runs.flatMap(({ own }) => own.experts.filter((e) => e.name === name));
    const at = runs[0].own.wishes.indexOf(name);
    const base = fixed(mean(runs.map(({ own }) => own.base[at])), 2);
    lines.push(
      `${name.padEnd(10)} ${base.padStart(5)} → ${over(
        of.map((e) => e.objectives[at]),
        2,
      ).padEnd(22)} ${over(
        of.map((e) => e.kl),
        2,
      )}`,
    );
  }
  const compared = runs.filter((run) => run.own.combinations);
  if (compared.length > 0) lines.push('', ...combinations(compared));
  const minutes = seeds.map((seed) => json(output, `spent-${seed}.json`).seconds / 60);
  lines.push(
    '',
    `${values.size}, seeds ${seeds.join(', ')}: ${size.steps} steps of ${size.batch} prompts × 4; ${fixed(mean(minutes), 1)} minutes of one core a seed`,
  );
  return lines.join('\n');
}

/** Who wins against whom on the eight combinations. */
function combinations(runs) {
  const { policies } = runs[0].own.combinations;
  const lines = [
    `${'soup against'.padEnd(14)} ${`wins and half of ties, %, mean [95 %] of ${runs.length}`.padEnd(48)} ${'by seed [95 % over prompts]'.padEnd(62)} worth to the chosen wishes`,
  ];
  for (const [p, name] of policies.entries()) {
    const worth = over(
      runs.map(({ own }) => mean(own.combinations.objectives.map((row) => row[p]))),
      2,
    );
    const found = runs.map(({ own }) => own.combinations.matrix[0][p]);
    if (!found[0]) {
      lines.push(`${'(the soup)'.padEnd(14)} ${'–'.padEnd(48)} ${'–'.padEnd(62)} ${worth}`);
      continue;
    }
    const by = found.map((w) => `${fixed(100 * w.rate, 1)} [${w.interval.map((v) => fixed(100 * v, 1)).join(', ')}]`);
    lines.push(
      `${name.padEnd(14)} ${over(
        found.map((w) => 100 * w.rate),
        1,
      ).padEnd(48)} ${by.join(' ').padEnd(62)} ${worth}`,
    );
  }
  return lines;
}
