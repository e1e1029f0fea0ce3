// Personal rewards on jokes: node examples/jester/compare.mjs [seeds] [--data DIR] [--model DIR]
import { parseArgs } from 'node:util';
import { Population } from 'pluralign';
import {
  accuracies,
  calibration,
  difference,
  interval,
  label,
  show,
  strengths,
  there,
  train,
  tuned,
  votesFrom,
} from '../p-share-lora/people.mjs';
import { bootstrap, mean } from '../p-share-lora/planted.mjs';
import { generator, readJester, samplePairs, shuffled } from './data.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    data: { type: 'string', default: '../shared/data/jester' },
    model: { type: 'string', default: '../shared/models/tinystories-656k' },
  },
});
const seeds = Number(positionals[0] ?? 5);
const models = [
  { model: 'global', rank: 1 },
  { model: 'local', rank: 1 },
  { model: 'low-rank', rank: 4 },
  { model: 'low-rank', rank: 32 },
  { model: 'mixed', rank: 4 },
  { model: 'lore', rank: 4 },
  { model: 'pal', rank: 4 },
  { model: 'heads', rank: 4 },
];
const shots = [0, 1, 2, 5, 10, 20, 50];
const { table, ratings } = await readJester(values.data, values.model);

/** One draw of voters and pairs: 1,000 who are known, 200 who are not; every fifth joke is held out for `new jokes`. */
function draw(seed) {
  const random = generator(seed + 11);
  const users = shuffled([...ratings.keys()], random).slice(0, 1200);
  const fresh = new Set(shuffled([...table.ids.keys()], random).slice(0, 20));
  const [known, unknown] = [users.slice(0, 1000), users.slice(1000)];
  const old = (item) => !fresh.has(item);
  const [pairs, held, jokes] = samplePairs(
    ratings,
    known,
    [
      { count: 20, only: old },
      { count: 20, only: old },
      { count: 20, only: (item) => fresh.has(item) },
    ],
    random,
  );
  const [support, query] = samplePairs(
    ratings,
    unknown,
    [
      { count: 50, only: old },
      { count: 40, only: old },
    ],
    random,
  );
  return { train: votesFrom(known, pairs), held, jokes, unknown, support, query };
}

const chosen = await tuned(table, models, draw(1000), strengths([0.03, 0.1, 0.3, 1]));
const draws = Array.from({ length: seeds }, (_, seed) => draw(seed));
const results = [];
for (const [s, setting] of models.entries()) {
  const runs = [];
  for (const [seed, data] of draws.entries()) {
    const population = await train(table, data.train, setting, chosen[s], seed);
    const scorer = population.scorer(table);
    const count = data.train.annotators.length;
    runs.push({
      population,
      held: accuracies(scorer, data.held, count),
      jokes: accuracies(scorer, data.jokes, count),
      unseen: accuracies(scorer, data.query, data.unknown.length, () => -1),
      ...calibration(scorer, data.held),
    });
  }
  results.push(runs);
}

console.log(`${seeds} draws of 1,000 known voters with 20 training pairs, ${table.d} features of 100 jokes`);
console.log(
  'model       l2 (own)   known voters             worst tenth  likelihood ece    brier   new jokes  unknown voters',
);
for (const [s, setting] of models.entries()) {
  const runs = results[s];
  const all = there(runs.flatMap((r) => r.held));
  const worst = [...all].sort((a, b) => a - b).slice(0, all.length / 10);
  const { l2, residual } = chosen[s];
  const columns = [label(setting).padEnd(11), `${l2}${residual ? ` (${residual})` : ''}`.padEnd(10)];
  columns.push(`${show(mean(all))} ${interval(bootstrap(all, mean, 500))}`, `${show(mean(worst))}      `);
  columns.push(show(mean(runs.map((r) => r.likelihood))).padEnd(10));
  columns.push(show(mean(runs.map((r) => r.ece))), show(mean(runs.map((r) => r.brier))).padEnd(7));
  columns.push(
    `${show(mean(there(runs.flatMap((r) => r.jokes))))}    `,
    show(mean(there(runs.flatMap((r) => r.unseen)))),
  );
  console.log(columns.join(' '));
}
const accuracy = (s) => mean(there(results[s].flatMap((r) => r.held)));
const lists = (s) => results[s].map((r) => r.held);
const shared = models.map(({ model }, s) => (['low-rank', 'mixed'].includes(model) ? s : -1)).filter((s) => s >= 0);
for (const s of shared)
  for (const other of [0, 1])
    console.log(`${label(models[s])} − ${label(models[other])}: ${difference(lists(s), lists(other))}`);
const best = shared.reduce((a, b) => (accuracy(b) > accuracy(a) ? b : a));

console.log(`\nan unknown voter's accuracy by shots, ${label(models[best])}`);
const times = [];
const generic = results[best].flatMap((r) => r.unseen);
for (const count of shots) {
  const right = results[best].flatMap(({ population, unseen }, seed) => {
    if (count === 0) return unseen;
    const { support, query, unknown } = draws[seed];
    const { parameters, annotators } = population;
    const own = unknown.map((name, u) => {
      const few = support.filter((t) => t[0] === u).slice(0, count);
      const votes = votesFrom(
        [name],
        few.map((t) => [0, t[1], t[2]]),
      );
      const fitted = population.fitOwn(
        table,
        votes,
        Int32Array.from({ length: votes.m }, (_, v) => v),
      );
      times.push(fitted.milliseconds);
      return fitted.own;
    });
    const flat = Float64Array.from([...parameters.own, ...own.flatMap((numbers) => [...numbers])]);
    const names = [...annotators, ...unknown.map((name) => `new ${name}`)];
    const people = new Population(population.model, population.rank, population.l2, names, {
      ...parameters,
      own: flat,
    });
    return accuracies(people.scorer(table), query, unknown.length, (u) => annotators.length + u);
  });
  const gain = there(right.map((a, i) => a - generic[i]));
  console.log(
    `${String(count).padStart(2)} shots  ${show(mean(there(right)))}  gain ${show(mean(gain))} ${interval(bootstrap(gain, mean, 500))}`,
  );
}
times.sort((a, b) => a - b);
console.log(
  `one fit: median ${show(times[times.length >> 1], 2)} ms, 99 % within ${show(times[Math.floor(times.length * 0.99)], 2)} ms`,
);
