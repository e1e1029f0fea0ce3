// Best of n jokes that are new to a voter: node examples/jester/best-of.mjs [draws] [--data DIR] [--model DIR]
import { parseArgs } from 'node:util';
import { bestOf, lowerConfidence } from 'pluralign';
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
const sizes = [2, 4, 8];
const models = [
  { model: 'global', rank: 1 },
  { model: 'local', rank: 1 },
  { model: 'low-rank', rank: 4 },
  { model: 'low-rank', rank: 32 },
  { model: 'mixed', rank: 2 },
];
const { table, ratings } = await readJester(values.data, values.model);

/** 1,000 voters with 20 pairs to learn from; pairs and lists of jokes that none of a voter's own pairs has. */
function draw(seed) {
  const random = generator(seed + 31);
  const users = shuffled([...ratings.keys()], random).slice(0, 1000);
  const [pairs] = samplePairs(ratings, users, [{ count: 20 }], random);
  const { left, held } = otherJokes(ratings, users, pairs, 20, random);
  const lists = left.flatMap((jokes, u) =>
    jokes.length < sizes.at(-1) ? [] : [{ u, jokes: shuffled(jokes, random).slice(0, sizes.at(-1)) }],
  );
  return { train: votesFrom(users, pairs), held, lists };
}

const chosen = await tuned(table, models, draw(1000), strengths([1, 3, 10, 30]));
const right = models.map(() => []);
const gained = new Map();
let voters = 0;
for (let seed = 0; seed < draws; seed++) {
  const { train: votes, held, lists } = draw(seed);
  voters += lists.length;
  const rewards = [];
  for (const [s, setting] of models.entries()) {
    const population = (await train(table, votes, setting, chosen[s], seed)).withPosteriors(table, votes);
    const scorer = population.scorer(table);
    rewards.push([label(setting), scorer]);
    if (setting.rank === 32) rewards.push([`${label(setting)}, lower`, lowerConfidence(population, table, 1)]);
    right[s].push(accuracies(scorer, held, votes.annotators.length));
  }
  for (const n of sizes) {
    const note = (name, of) => {
      const key = `${n} ${name}`;
      const any = ({ jokes }) => mean(jokes.slice(0, n).map((joke) => joke.rating));
      gained.set(key, [...(gained.get(key) ?? []), ...lists.map((list) => of(list) - any(list))]);
    };
    for (const [name, scorer] of rewards)
      note(name, ({ u, jokes }) => {
        const few = jokes.slice(0, n);
        return few[
          bestOf(
            scorer,
            u,
            Int32Array.from(few, ({ item }) => item),
          )
        ].rating;
      });
    note('their favourite', ({ jokes }) => Math.max(...jokes.slice(0, n).map((joke) => joke.rating)));
  }
}

const two = (list) =>
  `${show(mean(list), 2)} [${bootstrap(list, mean, 500)
    .map((x) => show(x, 2))
    .join(', ')}]`;
console.log(`${draws} draws of 1,000 voters with 20 training pairs, judged on jokes that none of their pairs has`);
console.log('\nmodel       l2 (own)   accuracy by voter         less global');
for (const [s, setting] of models.entries()) {
  const all = there(right[s].flat());
  const { l2, residual } = chosen[s];
  const cells = [label(setting).padEnd(11), `${l2}${residual ? ` (${residual})` : ''}`.padEnd(10)];
  cells.push(`${show(mean(all))} ${interval(bootstrap(all, mean, 500))} `);
  console.log([...cells, s > 0 ? difference(right[s], right[0]) : ''].join(' ').trimEnd());
}
console.log(`\nrating (of -10 to 10) of the joke picked out of n, less the n's mean; ${voters} voters`);
const names = [...new Set([...gained.keys()].map((key) => key.slice(key.indexOf(' ') + 1)))];
for (const name of ['', ...names]) {
  const cells = sizes.map((n) => (name ? two(gained.get(`${n} ${name}`)) : `best of ${n}`).padEnd(19));
  console.log(`${(name || 'picked by').padEnd(18)} ${cells.join(' ')}`.trimEnd());
}
for (const n of sizes) {
  const base = gained.get(`${n} global`);
  for (const name of names.filter((other) => /low-rank 32$|mixed/.test(other)))
    console.log(`best of ${n}, ${name} − global: ${two(gained.get(`${n} ${name}`).map((x, i) => x - base[i]))}`);
}
