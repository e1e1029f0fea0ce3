// A planted mixture of three Plackett–Luce types, found again from rankings of four out of twenty items.
// `node examples/mixture-pl/run.mjs [--seed N]`
import { parseArgs } from 'node:util';
import { adjustedRandIndex, assignTypes, chooseTypes, mixtureProblem, Random } from 'pluralign';

const { values } = parseArgs({ options: { seed: { type: 'string', default: '0' } } });
const seed = Number(values.seed);
const [items, types, annotators, questions, size] = [20, 3, 3000, 4, 4];
const started = performance.now();

const random = new Random(seed, 20);
const utilities = Array.from({ length: types }, () => Float64Array.from({ length: items }, () => random.normal()));
const type = Array.from({ length: annotators }, () => random.below(types));
const m = annotators * questions;
const ranked = new Int32Array(m * size);
for (let v = 0; v < m; v++) {
  // Every question shows other items: on one fixed set the mixture could not be told.
  const shown = new Set();
  while (shown.size < size) shown.add(random.below(items));
  const own = utilities[type[Math.floor(v / questions)]];
  // Utilities plus Gumbel noise, sorted, are a Plackett–Luce ranking.
  const keys = new Map([...shown].map((i) => [i, own[i] - Math.log(-Math.log(1 - random.uniform()))]));
  ranked.set(
    [...shown].sort((a, b) => keys.get(b) - keys.get(a)),
    v * size,
  );
}
const votes = {
  annotators: Array.from({ length: annotators }, (_, i) => `u${i}`),
  annotator: Int32Array.from({ length: m }, (_, v) => Math.floor(v / questions)),
  offsets: Int32Array.from({ length: m + 1 }, (_, v) => v * size),
  items: ranked,
  stages: new Int32Array(m).fill(size - 1),
  weights: new Float64Array(m).fill(1),
  margins: new Float64Array(m),
  rows: Int32Array.from({ length: m }, (_, v) => v),
  m,
};

const likeliest = (p) => p.indexOf(Math.max(...p));
const centred = (u) => u.map((value) => value - u.reduce((a, b) => a + b, 0) / u.length);
const {
  fit,
  types: chosen,
  criteria,
} = await chooseTypes(mixtureProblem(votes, items), [1, 2, 3, 4], {
  restarts: 3,
  rounds: 60,
  seed,
});

console.log('types  log-likelihood  parameters       BIC  held-out log-likelihood');
for (const c of criteria) {
  console.log(
    `${String(c.types).padStart(5)}  ${c.log_likelihood.toFixed(5).padStart(14)}  ${String(c.parameters).padStart(10)}  ` +
      `${c.bic.toFixed(1)}  ${c.held_out_log_likelihood.toFixed(5).padStart(23)}`,
  );
}
const byHeldOut = criteria.reduce((a, b) => (b.held_out_log_likelihood > a.held_out_log_likelihood ? b : a)).types;
console.log(`chosen: ${chosen} types by BIC, ${byHeldOut} by held-out likelihood`);

const mine = fit.posterior.gamma[0].map((_, i) => likeliest(fit.posterior.gamma.map((gamma) => gamma[i])));
const counts = utilities.map((_, k) => type.filter((t) => t === k).length / annotators);
const oracle = assignTypes(votes, utilities, counts).map((line) => likeliest(line.probabilities));
const [found, best] = [mine, oracle].map((of) => adjustedRandIndex(of, type));

/** Least root mean square over all ways to match the types. */
function error(a, b) {
  if (b.length === 0) return 0;
  const rest = (k) => b.filter((_, l) => l !== k);
  const square = (x, y) => x.reduce((sum, value, j) => sum + (value - y[j]) ** 2, 0);
  return Math.min(...b.map((y, k) => square(a[0], y) + error(a.slice(1), rest(k))));
}
const rms =
  fit.rewards.length === types
    ? Math.sqrt(error(fit.rewards.map(centred), utilities.map(centred)) / (types * items))
    : Number.NaN;
console.log(`adjusted Rand index ${found.toFixed(4)}, of an oracle that knows the utilities ${best.toFixed(4)}`);
console.log(`utilities: RMS error ${rms.toFixed(4)}`);
console.log(`weights: ${Array.from(fit.weights, (w) => w.toFixed(3)).join(' ')}`);
console.log(`${((performance.now() - started) / 1000).toFixed(1)} s`);
const holds = chosen === types && byHeldOut === types && best - found < 0.03 && rms < 0.08;
console.log(`${holds ? 'holds' : 'DOES NOT HOLD'}: 3 types, adjusted Rand within .03 of the oracle, RMS below .08`);
if (!holds) process.exitCode = 1;
