// Can the types of annotators be found from one question each? Not from pairs; from rankings of three, yes.
// `node examples/identifiability/run.mjs [--seed N] [--output FILE.svg]`: prints the table and writes the figure.
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { fitMixture, mixtureProblem, Random } from 'pluralign';
import { figure } from './figure.mjs';

const { values } = parseArgs({
  options: {
    seed: { type: 'string', default: '0' },
    output: { type: 'string', default: fileURLToPath(new URL('figure.svg', import.meta.url)) },
  },
});
const seed = Number(values.seed);
const truth = [
  [2, 0],
  [-2, 0],
];

/** Half of the annotators have rewards x·(2, 0), half x·(−2, 0); each ranks `size` options `questions` times. */
function votes(annotators, questions, size) {
  const random = new Random(seed, questions, size);
  const m = annotators * questions;
  const features = Float32Array.from({ length: m * size * 2 }, () => random.normal());
  const annotator = Int32Array.from({ length: m }, (_, v) => Math.floor(v / questions));
  const items = new Int32Array(m * size);
  const type = Uint8Array.from({ length: annotators }, (_, i) => i % 2);
  const keys = new Float64Array(m * size);
  for (let v = 0; v < m; v++) {
    const beta = truth[type[annotator[v]]];
    const places = Array.from({ length: size }, (_, j) => v * size + j);
    // Rewards plus Gumbel noise, sorted, are a Plackett–Luce ranking.
    for (const i of places) {
      const reward = beta[0] * features[2 * i] + beta[1] * features[2 * i + 1];
      keys[i] = reward - Math.log(-Math.log(1 - random.uniform()));
    }
    items.set(
      places.sort((a, b) => keys[b] - keys[a]),
      v * size,
    );
  }
  return {
    table: { features, n: m * size, d: 2 },
    votes: {
      annotators: Array.from({ length: annotators }, (_, i) => `u${i}`),
      annotator,
      offsets: Int32Array.from({ length: m + 1 }, (_, v) => v * size),
      items,
      stages: new Int32Array(m).fill(size - 1),
      weights: new Float64Array(m).fill(1),
      margins: new Float64Array(m),
      rows: Int32Array.from({ length: m }, (_, v) => v),
      m,
    },
  };
}

/** log Σ over types of half the probability of an annotator's votes, on average over annotators. */
function likelihood({ votes: v, table }, betas) {
  const perType = betas.map((beta) => {
    const sums = new Float64Array(v.annotators.length);
    for (let i = 0; i < v.m; i++) {
      let tail = 0;
      for (let l = v.offsets[i + 1] - 1; l >= v.offsets[i]; l--) {
        const at = 2 * v.items[l];
        const reward = beta[0] * table.features[at] + beta[1] * table.features[at + 1];
        tail += Math.exp(reward);
        sums[v.annotator[i]] += reward - Math.log(tail);
      }
    }
    return sums;
  });
  let total = 0;
  for (let i = 0; i < v.annotators.length; i++) {
    const own = perType.map((sums) => sums[i]);
    const top = Math.max(...own);
    total += top + Math.log(own.reduce((sum, value) => sum + Math.exp(value - top), 0) / own.length);
  }
  return total / v.annotators.length;
}

/** Largest error of any coordinate, types matched either way round. */
function distance(a, b) {
  const far = (order) => Math.max(...order.flatMap((k, i) => [0, 1].map((j) => Math.abs(a[k][j] - b[i][j]))));
  return Math.min(far([0, 1]), far([1, 0]));
}

const show = (beta) => `(${Array.from(beta, (b) => b.toFixed(2).padStart(5)).join(',')})`;

async function experiment(title, annotators, questions, size, restarts) {
  const started = performance.now();
  const data = votes(annotators, questions, size);
  const problem = mixtureProblem(data.votes, data.table);
  const fit = await fitMixture(problem, { types: 2, rounds: 60, restarts, seed });
  const starts = fit.starts.map((start) => ({ ...start, mean: start.logLikelihood / annotators }));
  const spread = Math.max(...starts.map((s) => s.mean)) - Math.min(...starts.map((s) => s.mean));
  const apart = Math.max(...starts.flatMap((a) => starts.map((b) => distance(a.rewards, b.rewards))));
  const error = Math.max(...starts.map((s) => distance(s.rewards, truth)));
  console.log(
    `\n${title}: ${annotators.toLocaleString('en')} annotators, ${questions} vote${questions > 1 ? 's' : ''} each`,
  );
  console.log(
    `  log-likelihood an annotator: truth ${likelihood(data, truth).toFixed(5)}, one indifferent type ${likelihood(
      data,
      [
        [0, 0],
        [0, 0],
      ],
    ).toFixed(5)}`,
  );
  console.log('  start  rounds  log-likelihood  weights      types');
  for (const [i, s] of starts.entries()) {
    const weights = Array.from(s.weights, (w) => w.toFixed(3)).join(' ');
    console.log(
      `  ${String(i + 1).padStart(5)}  ${String(s.rounds).padStart(6)}  ${s.mean.toFixed(5).padStart(14)}  ${weights}  ${s.rewards.map(show).join('  ')}`,
    );
  }
  console.log(
    `  starts differ by ${apart.toFixed(3)} in parameters, ${spread.toExponential(1)} in log-likelihood; from the truth by at most ${error.toFixed(3)}`,
  );
  console.log(`  ${((performance.now() - started) / 1000).toFixed(1)} s`);
  return { title, starts, apart, spread, error };
}

/** Probability of each ranking of x = −1, 0, 1 under half β and half −β. */
function closedForm(beta) {
  const x = [-1, 0, 1];
  const orders = [
    [0, 1, 2],
    [0, 2, 1],
    [1, 0, 2],
    [1, 2, 0],
    [2, 0, 1],
    [2, 1, 0],
  ];
  const ranking = (order, b) => {
    const e = order.map((i) => Math.exp(b * x[i]));
    return (e[0] / (e[0] + e[1] + e[2])) * (e[1] / (e[1] + e[2]));
  };
  const pair = (i, j, b) => 1 / (1 + Math.exp(b * (x[j] - x[i])));
  const half = (of) => (of(beta) + of(-beta)) / 2;
  return {
    rankings: orders.map((order) => half((b) => ranking(order, b))),
    pairs: [
      [0, 1],
      [0, 2],
      [1, 2],
    ].map(([i, j]) => half((b) => pair(i, j, b))),
  };
}

console.log('Closed form, options at x = −1, 0, 1, half of the annotators β and half −β');
for (const beta of [2, 0]) {
  const { rankings, pairs } = closedForm(beta);
  console.log(
    `  β = ${beta}: rankings ${rankings.map((p) => p.toFixed(4)).join(' ')}; pairs ${pairs.map((p) => p.toFixed(4)).join(' ')}`,
  );
}
const results = [
  await experiment('J = 2', 20_000, 1, 2, 8),
  await experiment('J = 3', 20_000, 1, 3, 8),
  await experiment('J = 2, many votes', 20_000, 20, 2, 2),
];
writeFileSync(values.output, figure(results, truth));
console.log(`\nfigure: ${values.output}`);
const [pairs, triples, many] = results;
const holds = triples.error < 0.08 && pairs.apart > 0.5 && pairs.spread < 0.001 && many.error < 0.08;
console.log(
  `${holds ? 'holds' : 'DOES NOT HOLD'}: J = 3 within .08 from every start (${triples.error.toFixed(3)}); J = 2 ends up to ${pairs.apart.toFixed(2)} apart with log-likelihoods within ${pairs.spread.toExponential(1)}; 20 pairs each within .08 (${many.error.toFixed(3)})`,
);
if (!holds) process.exitCode = 1;
