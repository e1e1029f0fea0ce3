// Three arms, three types of annotators (60, 30 and 10 %): what each way to make one policy of their votes costs each type.
// `node examples/bandit/run.mjs [--seeds N] [--annotators N]`
import { parseArgs } from 'node:util';
import { adjustedRandIndex, aggregate, fitMixture, mixtureProblem, Random } from 'pluralign';

const { values } = parseArgs({
  options: { seeds: { type: 'string', default: '20' }, annotators: { type: 'string', default: '200' } },
});
const seeds = Number(values.seeds);
const [arms, annotators, pairs, beta] = [3, Number(values.annotators), 10, 1];
const shares = [0.6, 0.3, 0.1];
const started = performance.now();

/** r_k(x, a) = 4 x_j with j = a + k (mod 3): each type looks for another arm in the same context. */
const reward = (k, x, a) => 4 * x[(a + k) % arms];
/** Rewards of a fitted type are linear in the context, with coefficients of each arm of its own. */
const fitted = (theta) => (x, a) => x.reduce((sum, value, j) => sum + theta[a * arms + j] * value, 0);

/** π(a|x) ∝ π_ref(a) exp(r(x, a) / β) with a uniform reference: what DPO on these rewards' votes converges to. */
function policy(rewards) {
  return (x) => {
    const e = Array.from({ length: arms }, (_, a) => Math.exp(rewards(x, a) / beta));
    const sum = e.reduce((a, b) => a + b);
    return e.map((value) => value / sum);
  };
}

/** Votes of every annotator on pairs of arms, each in a context of its own, by Bradley–Terry. */
function votes(random, type) {
  const m = annotators * pairs;
  const features = new Float32Array(m * 2 * arms * arms);
  const items = new Int32Array(2 * m);
  for (let v = 0; v < m; v++) {
    const x = Array.from({ length: arms }, () => random.uniform());
    const a = random.below(arms);
    const both = [a, (a + 1 + random.below(arms - 1)) % arms];
    const k = type[Math.floor(v / pairs)];
    for (const [j, arm] of both.entries()) features.set(x, (2 * v + j) * arms * arms + arm * arms);
    const margin = reward(k, x, both[0]) - reward(k, x, both[1]);
    const first = random.uniform() < 1 / (1 + Math.exp(-margin)) ? 0 : 1;
    items.set([2 * v + first, 2 * v + 1 - first], 2 * v);
  }
  return {
    table: { features, n: 2 * m, d: arms * arms },
    votes: {
      annotators: Array.from({ length: annotators }, (_, i) => `u${i}`),
      annotator: Int32Array.from({ length: m }, (_, v) => Math.floor(v / pairs)),
      offsets: Int32Array.from({ length: m + 1 }, (_, v) => 2 * v),
      items,
      stages: new Int32Array(m).fill(1),
      weights: new Float64Array(m).fill(1),
      margins: new Float64Array(m),
      rows: Int32Array.from({ length: m }, (_, v) => v),
      m,
    },
  };
}

/** E_x Σ_a π_j(a|x) log(π_k(a|x) / π_ref(a)) over contexts: types in rows, policies in columns. */
function matrixOf(own, all, contexts) {
  return own.map((mine) =>
    all.map((theirs) => {
      let sum = 0;
      for (const x of contexts) {
        const p = mine(x);
        sum += theirs(x).reduce((total, q, a) => total + q * Math.log(p[a] * arms), 0);
      }
      return sum / contexts.length;
    }),
  );
}

const truth = shares.map((_, k) => policy((x, a) => reward(k, x, a)));
const found = new Map();
const add = (name, regrets, weights) => {
  if (!found.has(name)) found.set(name, { regrets: [], weights: [] });
  found.get(name).regrets.push(regrets);
  if (weights) found.get(name).weights.push(weights);
};
let rand = 0;
for (let seed = 0; seed < seeds; seed++) {
  const random = new Random(seed, 31);
  const type = Array.from({ length: annotators }, (_, i) => (i < 0.6 * annotators ? 0 : i < 0.9 * annotators ? 1 : 2));
  const data = votes(random, type);
  const problem = mixtureProblem(data.votes, data.table);
  const fit = await fitMixture(problem, { types: 3, restarts: 6, init: 'random', l2: 0.1, seed });
  const likeliest = fit.posterior.gamma[0].map((_, i) =>
    [0, 1, 2].reduce((a, b) => (fit.posterior.gamma[b][i] > fit.posterior.gamma[a][i] ? b : a), 0),
  );
  rand += adjustedRandIndex(type, [...likeliest]) / seeds;

  const contexts = Array.from({ length: 2000 }, () => Array.from({ length: arms }, () => random.uniform()));
  const types = fit.rewards.map((theta) => policy(fitted(theta)));
  const one = policy(fitted(fit.pooled.beta));
  const L = matrixOf(types, types, contexts);
  // Regrets are told by the true types: what they lose against the policy that they would have wanted.
  const real = matrixOf(truth, [...truth, ...types, one], contexts);
  const regretOf = (columns) =>
    real.map((row, k) => beta * (row[k] - columns.reduce((sum, w, j) => sum + w * row[arms + j], 0)));
  add('plain DPO', regretOf([0, 0, 0, 1]));
  for (const rule of ['mean', 'max-min', 'uniform', 'min-max-regret']) {
    const { weights } = aggregate(L, beta, rule, { typeWeights: [...fit.weights] });
    add(rule, regretOf([...weights, 0]), weights);
  }
}

/** Mean over seeds ± 1.96 standard errors. */
function summary(numbers) {
  const mean = numbers.reduce((a, b) => a + b) / numbers.length;
  const variance = numbers.reduce((sum, x) => sum + (x - mean) ** 2, 0) / Math.max(1, numbers.length - 1);
  return `${mean.toFixed(3)} ±${((1.96 * Math.sqrt(variance)) / Math.sqrt(numbers.length)).toFixed(3)}`;
}
console.log(
  `${seeds} seeds, ${annotators} annotators × ${pairs} pairs, types ${shares.map((s) => `${100 * s} %`).join(', ')}`,
);
console.log(`adjusted Rand index of the types found: ${rand.toFixed(3)}\n`);
console.log('policy           regret of 60 %  regret of 30 %  regret of 10 %  worst           weights');
for (const [name, { regrets, weights }] of found) {
  const cells = [0, 1, 2].map((k) => summary(regrets.map((r) => r[k])));
  const worst = summary(regrets.map((r) => Math.max(...r)));
  const mean =
    weights.length > 0 ? [0, 1, 2].map((k) => (weights.reduce((s, w) => s + w[k], 0) / seeds).toFixed(2)) : [];
  console.log(`${name.padEnd(17)}${[...cells, worst].map((c) => c.padEnd(16)).join('')}${mean.join(' ')}`);
}
console.log(`\n${((performance.now() - started) / 1000).toFixed(1)} s`);
