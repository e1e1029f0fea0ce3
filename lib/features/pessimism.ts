import { PluralignError } from '../native/errors.js';
import type { Features } from './models/index.js';
import type { Population, Scorer } from './population.js';
import type { Posterior } from './posterior.js';

function posteriorOf(population: Population, u: number): Posterior {
  const posterior = population.posterior(u);
  if (posterior) return posterior;
  throw new PluralignError(
    'UNSUPPORTED',
    `features.model: ${population.model.name} keeps no posterior of its voters; give low-rank, heads or local of few numbers a voter`,
  );
}

/**
 * r − z · sd: what a voter's reward of an item is at least, as far as their votes tell. A reward means nothing but beside
 * another, so sd is that of the difference to the mean item of the table.
 */
export function lowerConfidence(population: Population, table: Features, z: number): Scorer {
  return pessimistic(population, table, z)(table);
}

/** The same for items of other tables, sd being of the difference to the mean item of `table`; z 0: the reward itself. */
export function pessimistic(population: Population, table: Features, z: number): (other: Features) => Scorer {
  const { k } = population.model;
  const middle = new Float64Array(k);
  if (z !== 0) {
    const { points } = population.model.items(table, population.parameters.shared);
    for (let i = 0; i < table.n; i++) for (let c = 0; c < k; c++) middle[c] += points[i * k + c] / table.n;
  }
  const known = new Map<number, Posterior>();
  return (other) => {
    const reward = population.scorer(other);
    if (z === 0) return reward;
    const { points } = population.model.items(other, population.parameters.shared);
    return (u, item) => {
      let posterior = known.get(u);
      if (!posterior) {
        posterior = posteriorOf(population, u);
        known.set(u, posterior);
      }
      const delta = middle.map((m, c) => points[item * k + c] - m);
      return reward(u, item) - z * posterior.sd(delta);
    };
  };
}

/** The item of a list that a voter's reward (or its lower bound) puts first: best-of-n re-ranking. */
export function bestOf(scorer: Scorer, u: number, items: ArrayLike<number>): number {
  let best = 0;
  for (let i = 1; i < items.length; i++) if (scorer(u, items[i]) > scorer(u, items[best])) best = i;
  return best;
}

export interface PessimisticChoice {
  /** [n] probabilities of the items. */
  policy: Float64Array;
  /** min over the confidence set of E_policy r − E_reference r. */
  value: number;
  /** How far below the optimum the value can be, at most. */
  gap: number;
}

/**
 * The pessimistic policy of the paper's linear case (Liu et al. 2025): argmax_π min_{‖z − ẑ‖_H ≤ radius} E_π r − E_ref r
 * over the distributions on some items. The inner minimum is δ·ẑ − radius · ‖L⁻¹ δ‖ with δ = E_π p − E_ref p: a game
 * between π and a vector s of the unit ball with payoff E_π[r − radius · s·L⁻¹p] − the same of the reference, solved by
 * mirror-prox (Nemirovski 2004); the gap is that between both players' best answers.
 *
 * @param reference [items] probabilities of the policy to improve on; default: uniform
 * @param radius of the confidence set in units of the posterior, such as `confidenceRadius(k, 0.95)`
 */
export function pessimisticPolicy(
  population: Population,
  table: Features,
  u: number,
  items: ArrayLike<number>,
  radius: number,
  reference?: ArrayLike<number>,
  steps = 4000,
): PessimisticChoice {
  const n = items.length;
  const { k } = population.model;
  const side = population.model.items(table, population.parameters.shared);
  const posterior = posteriorOf(population, u);
  const reward = population.scorer(table);
  const start = Float64Array.from({ length: n }, (_, i) => reference?.[i] ?? 1 / n);
  const mean = (of: (i: number) => number) => start.reduce((sum, p, i) => sum + p * of(i), 0);
  const raw = Array.from(items, (item) => posterior.half(side.points.subarray(item * k, (item + 1) * k)));
  const middle = Float64Array.from({ length: k }, (_, c) => mean((i) => raw[i][c]));
  // Beside the reference: rewards, and what is open of them in units of the radius.
  const base = mean((i) => reward(u, items[i]));
  const gains = Float64Array.from(items, (item) => reward(u, item) - base);
  const open = raw.map((half) => half.map((x, c) => radius * (x - middle[c])));
  const length = (v: Float64Array) => Math.sqrt(v.reduce((sum, x) => sum + x * x, 0));
  const spread = Math.max(...gains) - Math.min(...gains);
  const rate = 1 / Math.max(Math.SQRT2 * Math.max(...open.map(length)), spread / 50, 1e-12);

  const payoffs = (s: Float64Array) => gains.map((gain, i) => gain - open[i].reduce((sum, x, c) => sum + x * s[c], 0));
  const doubt = (p: Float64Array) =>
    Float64Array.from({ length: k }, (_, c) => p.reduce((sum, q, i) => sum + q * open[i][c], 0));
  const raise = (p: Float64Array, by: Float64Array) => {
    const top = Math.max(...by);
    const out = p.map((q, i) => q * Math.exp(rate * (by[i] - top)));
    const total = out.reduce((a, b) => a + b, 0);
    return out.map((q) => Math.max(q / total, 1e-300));
  };
  const push = (s: Float64Array, by: Float64Array) => {
    const out = s.map((x, c) => x + rate * by[c]);
    const size = Math.max(1, length(out));
    return out.map((x) => x / size);
  };
  let p: Float64Array = new Float64Array(n).fill(1 / n);
  let s: Float64Array = new Float64Array(k);
  const policy = new Float64Array(n);
  const answer = new Float64Array(k);
  for (let step = 1; step <= steps; step++) {
    const [ahead, s2] = [raise(p, payoffs(s)), push(s, doubt(p))];
    [p, s] = [raise(p, payoffs(s2)), push(s, doubt(ahead))];
    for (let i = 0; i < n; i++) policy[i] += (ahead[i] - policy[i]) / step;
    for (let c = 0; c < k; c++) answer[c] += (s2[c] - answer[c]) / step;
  }
  const value = policy.reduce((sum, q, i) => sum + q * gains[i], 0) - length(doubt(policy));
  return { policy, value, gap: Math.max(0, Math.max(...payoffs(answer)) - value) };
}

/** √ of the quantile of χ² with k degrees of freedom (Wilson and Hilferty 1931): the radius of a set of that level. */
export function confidenceRadius(k: number, level: number): number {
  const x = normalQuantile(level);
  const cube = 1 - 2 / (9 * k) + x * Math.sqrt(2 / (9 * k));
  return Math.sqrt(Math.max(0, k * cube ** 3));
}

/** By bisection on the error function's series; levels of confidence sets need no more. */
function normalQuantile(level: number): number {
  if (!(level > 0 && level < 1)) {
    throw new PluralignError('BAD_ARGUMENT', `level: found ${level}, expected a number between 0 and 1`);
  }
  let [low, high] = [-8, 8];
  for (let round = 0; round < 60; round++) {
    const middle = (low + high) / 2;
    if (normalCdf(middle) < level) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

function normalCdf(x: number): number {
  // Φ(x) = ½ + φ(x) Σ x^(2i+1) / (1·3·5 … (2i+1))
  let term = x;
  let sum = x;
  for (let i = 1; i < 200; i++) {
    term *= (x * x) / (2 * i + 1);
    sum += term;
  }
  return 0.5 + (sum * Math.exp((-x * x) / 2)) / Math.sqrt(2 * Math.PI);
}
