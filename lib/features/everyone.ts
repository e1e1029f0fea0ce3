import { PluralignError } from '../native/errors.js';
import type { Features } from './models/index.js';
import type { Population, Scorer } from './population.js';

export interface RewardAggregateOptions {
  /** Of Agg_α; 0: the mean, −∞: the least, +∞: the most. */
  alpha: number;
  /** [N] weights of the voters; default: equal. */
  weights?: ArrayLike<number>;
  /** [N] names of groups: Agg_α runs over the groups' means, each group as heavy as its voters together, or alike. */
  groups?: readonly (string | undefined)[];
  /** Groups count alike, however many voters they have. */
  equalGroups?: boolean;
}

/**
 * Agg_α(r) = (1/α) log Σ_u w_u exp(α r_u), Σ w = 1 (Park et al. 2405.00254): the mean at α = 0, towards the worst-off
 * voter's reward as α → −∞. Stable for any α.
 */
export function aggregateRewards(rewards: ArrayLike<number>, weights: ArrayLike<number>, alpha: number): number {
  if (Number.isNaN(alpha)) throw new PluralignError('BAD_ARGUMENT', 'alpha: found NaN, expected a number or -inf');
  let top = Number.NEGATIVE_INFINITY;
  let total = 0;
  const sign = alpha < 0 ? -1 : 1;
  for (let u = 0; u < rewards.length; u++) {
    if (weights[u] <= 0) continue;
    top = Math.max(top, sign * rewards[u]);
    total += weights[u];
  }
  if (!(total > 0)) throw new PluralignError('BAD_ARGUMENT', 'the weights of the voters add up to nothing');
  if (!Number.isFinite(alpha)) return sign * top;
  if (Math.abs(alpha) < 1e-8) {
    let mean = 0;
    for (let u = 0; u < rewards.length; u++) mean += (weights[u] / total) * rewards[u];
    return mean;
  }
  let sum = 0;
  for (let u = 0; u < rewards.length; u++) {
    if (weights[u] > 0) sum += (weights[u] / total) * Math.exp(Math.abs(alpha) * (sign * rewards[u] - top));
  }
  return sign * (top + Math.log(sum) / Math.abs(alpha));
}

/** The reward of an item for everyone together. Rewards are beside that of the table's mean item, or they could not be compared. */
export function aggregateScorer(
  population: Population,
  table: Features,
  { alpha, weights, groups, equalGroups }: RewardAggregateOptions,
): (item: number) => number {
  const count = population.annotators.length;
  const heavy = weights ?? new Float64Array(count).fill(1);
  const scorer = population.scorer(table);
  // The mean item's reward is that of the mean point.
  const { k } = population.model;
  const { base, points } = population.model.items(table, population.parameters.shared);
  const middle = new Float64Array(k);
  for (let i = 0; i < table.n; i++) for (let c = 0; c < k; c++) middle[c] += points[i * k + c] / table.n;
  const generic = base.reduce((sum, x) => sum + x / table.n, 0);
  const middles = Float64Array.from({ length: count }, (_, u) =>
    population.coordinates(u).reduce((sum, x, c) => sum + x * middle[c], generic),
  );
  const relative: Scorer = (u, item) => scorer(u, item) - middles[u];
  const members = new Map<string, number[]>();
  for (let u = 0; groups && u < count; u++) {
    // Whoever counts nothing makes no group.
    if (!(heavy[u] > 0)) continue;
    const name = groups[u] ?? '';
    const part = members.get(name);
    if (part) part.push(u);
    else members.set(name, [u]);
  }
  const parts = [...members.values()];
  return (item) => {
    const rewards = Float64Array.from({ length: count }, (_, u) => relative(u, item));
    if (!groups) return aggregateRewards(rewards, heavy, alpha);
    const masses = parts.map((part) => part.reduce((sum, u) => sum + heavy[u], 0));
    const means = parts.map((part, g) => part.reduce((sum, u) => sum + (heavy[u] / masses[g]) * rewards[u], 0));
    return aggregateRewards(means, equalGroups ? masses.map(() => 1) : masses, alpha);
  };
}
