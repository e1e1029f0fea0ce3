// Types of humour: how many do rankings of jokes tell of? node examples/jester/types.mjs [seeds] [--data DIR] [--model DIR]
import { parseArgs } from 'node:util';
import { assignTypes, bic, fitMixture, mixtureProblem } from 'pluralign';
import { bootstrap, mean } from '../p-share-lora/planted.mjs';
import { generator, readJester, shuffled } from './data.mjs';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    data: { type: 'string', default: '../shared/data/jester' },
    model: { type: 'string', default: '../shared/models/tinystories-656k' },
    voters: { type: 'string', default: '1000' },
  },
});
const seeds = Number(positionals[0] ?? 2);
const voters = Number(values.voters);
const [training, held, most, l2] = [6, 4, 8, 1];
const { table, ratings, names, jokes } = await readJester(values.data, values.model);
const started = performance.now();

/** Rankings of `size` jokes by one voter, best first, whose ratings differ by half a point at least. */
function rankings(rated, size, count, random) {
  const out = [];
  for (let tries = 0; out.length < count && tries < 200 * count; tries++) {
    const chosen = new Map();
    while (chosen.size < size) {
      const one = rated[random.below(rated.length)];
      chosen.set(one.item, one.rating);
    }
    const order = [...chosen].sort((a, b) => b[1] - a[1]);
    if (order.every(([, rating], i) => i === 0 || order[i - 1][1] - rating >= 0.5))
      out.push(order.map(([item]) => item));
  }
  return out;
}

function votesOf(names, lists, size) {
  const flat = lists.flatMap((own, u) => own.map((items) => ({ u, items })));
  return {
    annotators: names,
    annotator: Int32Array.from(flat, ({ u }) => u),
    offsets: Int32Array.from({ length: flat.length + 1 }, (_, v) => v * size),
    items: Int32Array.from(flat.flatMap(({ items }) => items)),
    stages: new Int32Array(flat.length).fill(size - 1),
    weights: new Float64Array(flat.length).fill(1),
    margins: new Float64Array(flat.length),
    rows: Int32Array.from({ length: flat.length }, (_, v) => v),
    m: flat.length,
  };
}

/** Rewards of every joke under each type, mean 0. */
function rewardsOf(types) {
  return types.map((beta) => {
    const own = Float64Array.from({ length: table.n }, (_, i) =>
      beta.reduce((sum, b, j) => sum + b * table.features[i * table.d + j], 0),
    );
    const middle = own.reduce((a, b) => a + b, 0) / own.length;
    return own.map((r) => r - middle);
  });
}

/** log p of a ranking under Plackett–Luce. */
function logLikelihood(rewards, items) {
  let [tail, sum] = [0, 0];
  for (const item of [...items].reverse()) {
    tail += Math.exp(rewards[item]);
    sum += rewards[item] - Math.log(tail);
  }
  return sum;
}

/** What a voter's posterior over types says of a ranking that was not shown. */
function predictive(probabilities, rewards, items) {
  return Math.log(probabilities.reduce((sum, p, k) => sum + p * Math.exp(logLikelihood(rewards[k], items)), 0));
}

const show = (value) => value.toFixed(4);
for (const size of [3, 5]) {
  /** Of every number of types: one number a voter and draw. */
  const results = Array.from({ length: most }, () => ({ scores: [], bic: [] }));
  const fits = [];
  for (let seed = 0; seed < seeds; seed++) {
    const random = generator(seed + 101);
    const users = shuffled([...ratings.keys()], random).slice(0, voters);
    const lists = users.map((user) => rankings(ratings.get(user), size, training + held, random));
    const train = votesOf(
      users,
      lists.map((own) => own.slice(0, training)),
      size,
    );
    const problem = mixtureProblem(train, table);
    for (let types = 1; types <= most; types++) {
      const fit = await fitMixture(problem, { types, init: 'k-means', restarts: 1, rounds: 30, l2, seed });
      const rewards = rewardsOf(fit.rewards);
      const known = new Map(
        assignTypes(train, rewards, fit.weights).map((line) => [line.annotator, line.probabilities]),
      );
      lists.forEach((own, u) => {
        const shown = own.slice(training);
        if (shown.length > 0)
          results[types - 1].scores.push(mean(shown.map((items) => predictive(known.get(users[u]), rewards, items))));
      });
      results[types - 1].bic.push(bic(fit.logLikelihood, types * problem.rank + types - 1, train.m));
      fits[types] = { fit, rewards };
    }
  }
  const chance = -Math.log(Array.from({ length: size }, (_, i) => i + 1).reduce((a, b) => a * b));
  console.log(
    `\nrankings of ${size}: ${voters} voters × ${training}, ${held} held out, ${seeds} draws; by chance ${show(chance)}`,
  );
  console.log('types  held-out log-likelihood       over one type fewer          BIC (lower is better)');
  results.forEach(({ scores, bic: criteria }, i) => {
    const gain = i === 0 ? null : scores.map((s, v) => s - results[i - 1].scores[v]);
    const [low, high] = bootstrap(scores, mean);
    const [from, to] = gain ? bootstrap(gain, mean) : [];
    console.log(
      `${String(i + 1).padStart(5)}  ${show(mean(scores))} [${show(low)}, ${show(high)}]  ` +
        `${gain ? `${show(mean(gain))} [${show(from)}, ${show(to)}]`.padStart(25) : ''.padStart(25)}  ${mean(criteria).toFixed(0).padStart(12)}`,
    );
  });
  const best = results.reduce((a, r, i) => (mean(r.scores) > mean(results[a].scores) ? i : a), 0) + 1;
  console.log(`best by held-out rankings: ${best} types`);
  if (size === 5) describe(best, fits[best]);
}

/** What the types like: the plain statistics that their rewards go with, and the jokes that set them apart. */
function describe(types, { fit, rewards }) {
  console.log(`\n${types} types from rankings of 5, last draw`);
  const average = Float64Array.from({ length: table.n }, (_, i) => mean(rewards.map((own) => own[i])));
  rewards.forEach((own, k) => {
    const apart = own.map((r, i) => r - average[i]);
    const correlations = names
      .map((name, j) => ({
        name,
        value: correlation(
          apart,
          jokes.map((joke) => joke.statistics[j]),
        ),
      }))
      .sort((a, b) => Math.abs(b.value) - Math.abs(a.value))
      .slice(0, 3);
    const [top] = [...apart.keys()].sort((a, b) => apart[b] - apart[a]);
    console.log(
      `  ${(100 * fit.weights[k]).toFixed(0).padStart(3)} %  more than others: ` +
        correlations
          .map(({ name, value }) => `${name} ${value > 0 ? '+' : '−'}${Math.abs(value).toFixed(2)}`)
          .join(', ') +
        `; most of all joke ${table.ids[top]}`,
    );
  });
}

function correlation(x, y) {
  const [mx, my] = [mean([...x]), mean([...y])];
  let [xy, xx, yy] = [0, 0, 0];
  for (let i = 0; i < x.length; i++) {
    xy += (x[i] - mx) * (y[i] - my);
    xx += (x[i] - mx) ** 2;
    yy += (y[i] - my) ** 2;
  }
  return xx > 0 && yy > 0 ? xy / Math.sqrt(xx * yy) : 0;
}
console.log(`\n${((performance.now() - started) / 1000).toFixed(0)} s`);
