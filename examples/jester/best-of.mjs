// Best of n jokes that are new to a voter: node examples/jester/best-of.mjs [draws] [--data DIR] [--model DIR]
import { parseArgs } from 'node:util';
import { bestOf, itemTable, lowerConfidence } from 'pluralign';
import {
  accuracies,
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
import { generator, otherJokes, readJester, samplePairs, shuffled } from './data.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    data: { type: 'string', default: '../shared/data/jester' },
    model: { type: 'string', default: '../shared/models/tinystories-656k' },
  },
});
const draws = Number(positionals[0] ?? 5);
const [voters, each] = [2000, 40];
const sizes = [2, 4, 8];
const models = [
  { model: 'global', rank: 1 },
  { model: 'local', rank: 1 },
  { model: 'low-rank', rank: 4 },
  { model: 'mixed', rank: 4 },
];
const { table: texts, ratings } = await readJester(values.data, values.model);
const jokes = texts.ids.length;
// A feature for each joke: nothing of the text, and to the prior all jokes are alike.
const alone = itemTable(
  'jokes',
  [...texts.ids],
  Float32Array.from({ length: jokes ** 2 }, (_, at) => (at % (jokes + 1) === 0 ? 1 : 0)),
  jokes,
);
const priors = { texts: [0.3, 1, 3, 10], alone: [0.1, 0.3, 1, 3] };

/** Voters with pairs to learn from; pairs and lists of jokes that none of a voter's own pairs has. */
function draw(seed) {
  const random = generator(seed + 31);
  const users = shuffled([...ratings.keys()], random).slice(0, voters);
  const [pairs] = samplePairs(ratings, users, [{ count: each }], random);
  const { left, held } = otherJokes(ratings, users, pairs, 20, random);
  const lists = left.flatMap((rated, u) =>
    rated.length < sizes.at(-1) ? [] : [{ u, rated: shuffled(rated, random).slice(0, sizes.at(-1)) }],
  );
  return { train: votesFrom(users, pairs), held, lists };
}

const tables = { texts, alone };
const titles = { texts: `${texts.d} features of the text`, alone: 'a feature for each joke' };
const [right, chosen, gained] = [{}, {}, new Map()];
const worlds = Array.from({ length: draws }, (_, seed) => draw(seed));
for (const [kind, table] of Object.entries(tables)) {
  chosen[kind] = await tuned(table, models, draw(1000), strengths(priors[kind]));
  right[kind] = models.map(() => []);
  for (const [seed, { train: votes, held, lists }] of worlds.entries()) {
    const rewards = [];
    for (const [s, setting] of models.entries()) {
      const population = (await train(table, votes, setting, chosen[kind][s], seed)).withPosteriors(table, votes);
      const scorer = population.scorer(table);
      rewards.push([label(setting), scorer]);
      if (setting.model === 'low-rank')
        rewards.push([`${label(setting)}, lower`, lowerConfidence(population, table, 1)]);
      right[kind][s].push(accuracies(scorer, held, voters));
    }
    if (kind === 'texts') continue;
    for (const n of sizes) {
      const note = (name, of) => {
        const key = `${n} ${name}`;
        const any = ({ rated }) => mean(rated.slice(0, n).map((joke) => joke.rating));
        gained.set(key, [...(gained.get(key) ?? []), ...lists.map((list) => of(list) - any(list))]);
      };
      for (const [name, scorer] of rewards)
        note(name, ({ u, rated }) => {
          const few = rated.slice(0, n);
          return few[
            bestOf(
              scorer,
              u,
              Int32Array.from(few, ({ item }) => item),
            )
          ].rating;
        });
      note('their favourite', ({ rated }) => Math.max(...rated.slice(0, n).map((joke) => joke.rating)));
    }
  }
}

const two = (list) =>
  `${show(mean(list), 2)} [${bootstrap(list, mean, 500)
    .map((x) => show(x, 2))
    .join(', ')}]`;
console.log(
  `${draws} draws of ${voters} voters with ${each} training pairs, judged on jokes that none of their pairs has`,
);
for (const kind of Object.keys(tables)) {
  console.log(`\n${titles[kind].padEnd(24)} l2 (own)   accuracy by voter         less global`);
  for (const [s, setting] of models.entries()) {
    const all = there(right[kind][s].flat());
    const { l2, residual } = chosen[kind][s];
    const cells = [label(setting).padEnd(24), `${l2}${residual ? ` (${residual})` : ''}`.padEnd(10)];
    cells.push(`${show(mean(all))} ${interval(bootstrap(all, mean, 500))} `);
    console.log([...cells, s > 0 ? difference(right[kind][s], right[kind][0]) : ''].join(' ').trimEnd());
  }
}
console.log(`\nrating (of -10 to 10) of the joke picked out of n, less the n's mean; a feature for each joke`);
const names = [...new Set([...gained.keys()].map((key) => key.slice(key.indexOf(' ') + 1)))];
for (const name of ['', ...names]) {
  const cells = sizes.map((n) => (name ? two(gained.get(`${n} ${name}`)) : `best of ${n}`).padEnd(19));
  console.log(`${(name || 'picked by').padEnd(18)} ${cells.join(' ')}`.trimEnd());
}
for (const n of sizes) {
  const base = gained.get(`${n} global`);
  for (const name of names.filter((other) => /low-rank 4$|mixed/.test(other)))
    console.log(`best of ${n}, ${name} − global: ${two(gained.get(`${n} ${name}`).map((x, i) => x - base[i]))}`);
}
