// Personal rewards on jokes: node examples/jester/compare.mjs [seeds] [--data DIR] [--model DIR]
import { parseArgs } from 'node:util';
import { featureModel, Population } from 'pluralign';
import { bootstrap, mean } from '../p-share-lora/planted.mjs';
import { generator, readJester, samplePairs, shuffled, votesFrom } from './data.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    data: { type: 'string', default: '../shared/data/jester' },
    model: { type: 'string', default: '../shared/models/tinystories-656k' },
  },
});
const seeds = Number(positionals[0] ?? 5);
const show = (value) => value.toFixed(4);
const interval = ([low, high]) => `[${show(low)}, ${show(high)}]`;
const models = [
  { model: 'global', rank: 1 },
  { model: 'local', rank: 1 },
  { model: 'low-rank', rank: 4 },
  { model: 'low-rank', rank: 32 },
  { model: 'lore', rank: 4 },
  { model: 'pal', rank: 4 },
  { model: 'heads', rank: 4 },
];
const label = ({ model, rank }) => (model === 'global' || model === 'local' ? model : `${model} ${rank}`);
const shots = [0, 1, 2, 5, 10, 20, 50];
const { table, ratings } = await readJester(values.data, values.model);

/** One draw of voters and pairs: 1,000 who are known, 200 who are not; every fifth joke is held out for `new jokes`. */
function draw(seed) {
  const random = generator(seed + 11);
  const users = shuffled([...ratings.keys()], random).slice(0, 1200);
  const fresh = new Set(shuffled([...table.ids.keys()], random).slice(0, 20));
  const [known, unknown] = [users.slice(0, 1000), users.slice(1000)];
  const old = (item) => !fresh.has(item);
  const [train, held, jokes] = samplePairs(
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
  return { train: votesFrom(known, train), held, jokes, unknown, support, query };
}

function train(data, { model, rank }, l2, seed) {
  const made = featureModel(model, table.d, rank);
  const { parameters } = made.fit(table, data.train, { model, rank, l2, seed });
  return new Population(made, rank, l2, data.train.annotators, parameters);
}

/** Accuracy of every voter who has pairs in the list. */
function accuracies(scorer, triples, count, who = (u) => u) {
  const right = new Float64Array(count);
  const total = new Float64Array(count);
  for (const [u, better, worse] of triples) {
    right[u] += scorer(who(u), better) > scorer(who(u), worse) ? 1 : 0;
    total[u]++;
  }
  return [...right].map((r, u) => r / total[u]).filter((a) => !Number.isNaN(a));
}

// The strength of the prior of each model on a draw that is not used again.
const tuning = draw(1000);
const strengths = models.map((setting) => {
  const tried = [0.1, 0.3, 1].map((l2) => {
    const scorer = train(tuning, setting, l2, 0).scorer(table);
    return { l2, accuracy: mean(accuracies(scorer, tuning.held, 1000)) };
  });
  return tried.reduce((a, b) => (b.accuracy > a.accuracy ? b : a)).l2;
});

const draws = Array.from({ length: seeds }, (_, seed) => draw(seed));
const results = models.map((setting, s) =>
  draws.map((data, seed) => {
    const population = train(data, setting, strengths[s], seed);
    const scorer = population.scorer(table);
    const count = data.train.annotators.length;
    return {
      population,
      held: accuracies(scorer, data.held, count),
      jokes: accuracies(scorer, data.jokes, count),
      unseen: accuracies(scorer, data.query, data.unknown.length, () => -1),
    };
  }),
);

console.log(`${seeds} draws of 1,000 known voters with 20 training pairs, ${table.d} features of 100 jokes`);
console.log('model       l2    known voters             worst tenth  new jokes  unknown voters');
for (const [s, setting] of models.entries()) {
  const all = results[s].flatMap((r) => r.held);
  const sorted = [...all].sort((a, b) => a - b).slice(0, all.length / 10);
  const columns = [label(setting).padEnd(11), String(strengths[s]).padEnd(5)];
  columns.push(`${show(mean(all))} ${interval(bootstrap(all, mean, 500))}`, `${show(mean(sorted))}      `);
  columns.push(
    `${show(mean(results[s].flatMap((r) => r.jokes)))}    `,
    show(mean(results[s].flatMap((r) => r.unseen))),
  );
  console.log(columns.join(' '));
}
const lowRank = models.map((m, s) => (m.model === 'low-rank' ? s : -1)).filter((s) => s >= 0);
const accuracy = (s) => mean(results[s].flatMap((r) => r.held));
const best = lowRank.reduce((a, b) => (accuracy(b) > accuracy(a) ? b : a));
for (const other of [0, 1]) {
  const differences = results[best].flatMap((r, seed) => r.held.map((a, u) => a - results[other][seed].held[u]));
  console.log(
    `${label(models[best])} − ${label(models[other])}: ${show(mean(differences))} ${interval(bootstrap(differences, mean, 1000))} (paired over voters and draws)`,
  );
}

console.log(`\nan unknown voter's accuracy by shots, ${label(models[best])}`);
const times = [];
const generic = results[best].flatMap((r) => r.unseen);
for (const count of shots) {
  const values = results[best].flatMap(({ population }, seed) => {
    const { support, query, unknown } = draws[seed];
    let people = population;
    const adapted = unknown.map((name, u) => {
      if (count === 0) return -1;
      const few = votesFrom(
        [name],
        support
          .filter((t) => t[0] === u)
          .slice(0, count)
          .map((t) => [0, t[1], t[2]]),
      );
      const { own, milliseconds } = people.fitOwn(
        table,
        few,
        Int32Array.from({ length: few.m }, (_, v) => v),
      );
      times.push(milliseconds);
      return own;
    });
    const { parameters, annotators } = people;
    const flat = Float64Array.from([...parameters.own, ...adapted.flatMap((own) => (own === -1 ? [] : [...own]))]);
    people = new Population(people.model, people.rank, people.l2, [...annotators, ...unknown.map((n) => `new ${n}`)], {
      ...parameters,
      own: flat,
    });
    return accuracies(people.scorer(table), query, unknown.length, (u) => (count === 0 ? -1 : annotators.length + u));
  });
  const gain = values.map((a, i) => a - generic[i]);
  console.log(
    `${String(count).padStart(2)} shots  ${show(mean(values))}  gain ${show(mean(gain))} ${interval(bootstrap(gain, mean, 500))}`,
  );
}
times.sort((a, b) => a - b);
console.log(
  `one fit: median ${times[times.length >> 1].toFixed(2)} ms, 99 % within ${times[Math.floor(times.length * 0.99)].toFixed(2)} ms`,
);
