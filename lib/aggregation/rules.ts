import { PluralignError } from '../native/errors.js';
import { optimisticHedge, solveGame } from './game.js';
import { type Matrix, regretMatrix, rewardMatrix, times, withZeroRow } from './regret.js';

/** Ways to make one policy, a mixture, of the types' policies. */
export const rules = ['min-max-regret', 'max-min', 'mean', 'alpha', 'uniform'] as const;
export type Rule = (typeof rules)[number];

export interface AggregateOptions {
  /** α of rule `alpha`: 0 is the mean, −∞ the worst type. Default −1. */
  alpha?: number;
  /** Share of each type in `mean` and `alpha`, [K]; default: equal. */
  typeWeights?: readonly number[];
  /** For the two worst-case rules: the exact linear program (default) or the paper's optimistic Hedge. */
  solver?: 'lp' | 'hedge';
}

export interface Aggregate {
  rule: Rule;
  /** Share of each policy in the sequence-level mixture, [J]. */
  weights: number[];
  /** Regret of each type under the mixture, [K]. */
  regrets: number[];
  /** max_k [regret_k]₊ */
  worst_regret: number;
  /** Reward β Σ_j w_j L_kj of each type, [K]. */
  rewards: number[];
}

/**
 * The mixture of policies that a rule chooses.
 *
 * | rule | w |
 * |---|---|
 * | `min-max-regret` | argmin max_k [regret_k(w)]₊ (Chidambaram et al. 2024) |
 * | `max-min` | argmax min_k of the type's expected reward (MaxMin-RLHF, Chakraborty et al. 2024) |
 * | `mean` | argmax of the mean reward over types, weighted by `typeWeights` |
 * | `alpha` | argmax (1/α) log Σ_k η_k exp(α · reward_k) |
 * | `uniform` | 1/J each |
 *
 * `L` [K, J] as in `rewardMatrix`; K types, J policies (J = K where each type brings its own).
 */
export function aggregate(L: Matrix, beta: number, rule: Rule, options: AggregateOptions = {}): Aggregate {
  if (!rules.includes(rule))
    throw new PluralignError(
      'BAD_ARGUMENT',
      `rule: found ${JSON.stringify(rule)}, expected one of ${rules.join(', ')}`,
    );
  const rewards = rewardMatrix(L, beta);
  const regret = regretMatrix(rewards);
  const weights = weightsOf(rule, rewards, regret, options);
  const regrets = times(regret, weights);
  return { rule, weights, regrets, worst_regret: Math.max(0, ...regrets), rewards: times(rewards, weights) };
}

function weightsOf(rule: Rule, rewards: Matrix, regret: Matrix, options: AggregateOptions): number[] {
  const solve = options.solver === 'hedge' ? optimisticHedge : solveGame;
  const columns = rewards[0].length;
  switch (rule) {
    case 'min-max-regret':
      return solve(withZeroRow(regret)).w;
    case 'max-min':
      return solve(rewards.map((row) => row.map((value) => -value))).w;
    case 'mean':
      return maximiseAlpha(rewards, 0, typeShares(rewards.length, options.typeWeights));
    case 'alpha':
      return maximiseAlpha(rewards, options.alpha ?? -1, typeShares(rewards.length, options.typeWeights));
    case 'uniform':
      return new Array<number>(columns).fill(1 / columns);
  }
}

function typeShares(types: number, given: readonly number[] | undefined): number[] {
  if (!given) return new Array<number>(types).fill(1 / types);
  const sum = given.reduce((a, b) => a + b, 0);
  if (given.length !== types || !given.every((value) => value >= 0) || !(sum > 0) || !Number.isFinite(sum))
    throw new PluralignError(
      'BAD_DATA',
      `type weights: found [${given.join(', ')}], expected ${types} numbers of at least 0, one for each type, not all 0`,
    );
  return given.map((value) => value / sum);
}

/** (1/α) log Σ_k η_k exp(α u_k); the mean for α = 0, the minimum for α = −∞. */
export function alphaAggregate(u: readonly number[], alpha: number, shares: readonly number[]): number {
  const live = u.filter((_, k) => shares[k] > 0);
  if (alpha === 0) return u.reduce((sum, value, k) => sum + shares[k] * value, 0);
  if (!Number.isFinite(alpha)) return alpha < 0 ? Math.min(...live) : Math.max(...live);
  const most = Math.max(...live.map((value) => alpha * value));
  return (most + Math.log(u.reduce((sum, value, k) => sum + shares[k] * Math.exp(alpha * value - most), 0))) / alpha;
}

/** Above α = 0 the objective is convex in w, so a single policy is best; below it is concave. */
function maximiseAlpha(rewards: Matrix, alpha: number, shares: readonly number[]): number[] {
  if (Number.isNaN(alpha)) throw new PluralignError('BAD_ARGUMENT', 'alpha: found NaN, expected a number');
  const columns = rewards[0].length;
  if (alpha === Number.NEGATIVE_INFINITY) {
    const live = rewards.filter((_, k) => shares[k] > 0);
    return solveGame(live.map((row) => row.map((value) => -value))).w;
  }
  if (alpha >= 0) {
    const of = (j: number) =>
      alphaAggregate(
        rewards.map((row) => row[j]),
        alpha,
        shares,
      );
    const values = Array.from({ length: columns }, (_, j) => of(j));
    const best = Math.max(...values);
    // Policies that are equally good share the weight, so that the answer does not depend on their order.
    const ties = values.map((value) => (best - value <= 1e-12 * Math.max(1, Math.abs(best)) ? 1 : 0));
    const count = ties.reduce<number>((a, b) => a + b, 0);
    return ties.map((tie) => tie / count);
  }
  return cuttingPlanes(rewards, alpha, shares);
}

/**
 * Kelley's method: the concave objective is the least of its tangents, each new one taken where the last were largest;
 * maximising the least of tangents over the simplex is a matrix game. Stops where the bounds meet.
 */
function cuttingPlanes(rewards: Matrix, alpha: number, shares: readonly number[]): number[] {
  const columns = rewards[0].length;
  let w = new Array<number>(columns).fill(1 / columns);
  let best = { w, value: Number.NEGATIVE_INFINITY };
  const tangents: number[][] = [];
  for (let round = 0; round < 500; round++) {
    const u = times(rewards, w);
    const value = alphaAggregate(u, alpha, shares);
    if (value > best.value) best = { w, value };
    const pull = u.map((reward, k) => shares[k] * Math.exp(alpha * (reward - value)));
    const slope = Array.from({ length: columns }, (_, j) => rewards.reduce((s, row, k) => s + pull[k] * row[j], 0));
    const at = slope.reduce((sum, s, j) => sum + s * w[j], 0);
    // On the simplex the constant of a tangent can go into each of its slopes.
    tangents.push(slope.map((s) => -(s + value - at)));
    const game = solveGame(tangents);
    w = game.w;
    if (-game.value - best.value <= 1e-9 * Math.max(1, Math.abs(best.value))) break;
  }
  return best.w;
}
