/** What choosing among a model's own answers by a learned reward is truly worth, with and without pessimism. */

import { featureModel } from '../../dist/features/models/index.js';
import { Population } from '../../dist/features/population.js';
import { pessimistic } from '../../dist/index.js';

/** How rewards are learnt: a shared plane or each voter alone, under a prior about as wide as tastes are, or hardly any. */
export const fits = {
  'low-rank, l2 1': { model: 'low-rank', rank: 2, l2: 1 },
  'low-rank, l2 .01': { model: 'low-rank', rank: 2, l2: 0.01 },
  'local, l2 4': { model: 'local', rank: 1, l2: 4 },
  'local, l2 .01': { model: 'local', rank: 1, l2: 0.01 },
};
/** Votes of each of the people. */
export const peoples = [60, 12, 6, 3, 2, 1].flatMap((count) => [count, count, count, count]);
export const counts = [...new Set(peoples)];
/** Standard deviations that are taken off an answer, and by which a confidence set reaches. */
const bounds = [0.25, 0.5, 1, 2];
const radii = [0.5, 1];

/** A table of features as the library has them. */
export function tableOf(features) {
  return { features: Float32Array.from(features.flat()), n: features.length, d: features[0].length };
}

export async function fitted(table, votes, count, name) {
  const { model: family, rank, l2 } = fits[name];
  const model = featureModel(family, table.d, rank);
  const m = votes.length;
  const given = {
    annotators: Array.from({ length: count }, (_, u) => `voter-${u}`),
    annotator: Int32Array.from(votes, ({ u }) => u),
    offsets: Int32Array.from({ length: m + 1 }, (_, v) => 2 * v),
    items: Int32Array.from(votes.flatMap(({ chosen, rejected }) => [chosen, rejected])),
    stages: new Int32Array(m).fill(1),
    weights: new Float64Array(m).fill(1),
    margins: new Float64Array(m),
    rows: Int32Array.from({ length: m }, (_, v) => v),
    m,
  };
  const { parameters } = await model.fit(table, given, { model: family, rank, l2, seed: 0 });
  return new Population(model, rank, l2, given.annotators, parameters).withPosteriors(table, given);
}

/**
 * The rewards by which a voter's answers are chosen, [name, reward of an item of `other`]: as learnt, less z deviations of
 * what is open about each answer (`bound`), or by the reward of a confidence set of radius z under which the policy that
 * is best against it gains least (`set`; Liu et al. 2025 with a price on KL): argmin over the set of β log E exp(r / β).
 */
export function rewardsOf(population, table, groups, other, u) {
  const plain = pessimistic(population, table, 0)(other);
  const lower = pessimistic(population, table, 1)(other);
  const r = Float64Array.from({ length: other.n }, (_, i) => plain(u, i));
  const sd = Float64Array.from({ length: other.n }, (_, i) => r[i] - lower(u, i));
  const found = [['plain', r]];
  for (const z of bounds) found.push([`bound ${z}`, r.map((value, i) => value - z * sd[i])]);
  const { points } = population.model.items(other, population.parameters.shared);
  const { k } = population.model;
  for (const z of radii) {
    const shift = leastOf(population, table, groups, u, z);
    found.push([`set ${z}`, r.map((value, i) => value - shift.reduce((sum, x, c) => sum + x * points[i * k + c], 0))]);
  }
  return found;
}

const beta = 0.1;
/** By how much the set's least reward differs from the learned one, as weights on points [k] (Frank–Wolfe on a ball). */
export function leastOf(population, table, groups, u, radius) {
  const { model, parameters } = population;
  const { k } = model;
  const { points } = model.items(table, parameters.shared);
  const score = population.scorer(table);
  const posterior = population.posterior(u);
  const r = Float64Array.from({ length: table.n }, (_, i) => score(u, i));
  const s = new Float64Array(k);
  let shift = new Float64Array(k);
  for (let step = 0; step < 20; step++) {
    // What the policy that is best against this reward has more of than the base, mean over prompts.
    const delta = new Float64Array(k);
    for (const group of groups) {
      const own = group.map((i) => {
        let value = r[i];
        for (let c = 0; c < k; c++) value -= shift[c] * points[i * k + c];
        return value;
      });
      const top = Math.max(...own);
      const p = own.map((value) => Math.exp((value - top) / beta));
      const total = p.reduce((a, b) => a + b, 0);
      group.forEach((i, g) => {
        const more = (p[g] / total - 1 / group.length) / groups.length;
        for (let c = 0; c < k; c++) delta[c] += more * points[i * k + c];
      });
    }
    const half = posterior.half(delta);
    const size = Math.hypot(...half) || 1;
    const rate = 2 / (step + 2);
    for (let c = 0; c < k; c++) s[c] += rate * (half[c] / size - s[c]);
    shift = backwards(posterior.factor, k, s).map((x) => radius * x);
  }
  return shift;
}

/** L⁻ᵀ s. */
function backwards(factor, k, s) {
  const x = Float64Array.from(s);
  for (let i = k - 1; i >= 0; i--) {
    for (let p = i + 1; p < k; p++) x[i] -= factor[p * k + i] * x[p];
    x[i] /= factor[i * k + i];
  }
  return x;
}

/** Mean true reward of the answer to each prompt that a reward puts first. */
export function worthOfBest(groups, by, truth) {
  let sum = 0;
  for (const group of groups) {
    let best = group[0];
    for (const i of group) if (by[i] > by[best]) best = i;
    sum += truth[best];
  }
  return sum / groups.length;
}
