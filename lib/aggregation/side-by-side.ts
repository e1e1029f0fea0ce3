import { bootstrapL, estimateL, interval, type PromptMeans } from './estimate.js';
import { rewardMatrix } from './regret.js';
import { type Aggregate, type AggregateOptions, aggregate, type Rule, rules } from './rules.js';

/** What a policy or mixture costs each type, with 95 % bootstrap intervals over prompts. */
export interface Regrets {
  /** [K]; of a policy that was sampled, an estimate that may fall below 0. */
  regrets: number[];
  regret_intervals: [number, number][];
  /** max_k [regret_k]₊ */
  worst_regret: number;
  worst_regret_interval: [number, number];
}

/** Every aggregator on one estimate of L. */
export interface SideBySide {
  L: number[][];
  standardErrors: number[][];
  rules: (Aggregate & Regrets)[];
  /** Policies that are no type's own, such as one for all. */
  others: (Regrets & { name: string })[];
}

const draws = 1000;

/**
 * Regrets of every rule's mixture of the K types' policies, and of other policies. The first K columns of `means` are the
 * types' own policies, the rest the `others`. The weights are those of the whole sample; the intervals hold them fixed and
 * redraw the prompts.
 */
export function sideBySide(
  means: PromptMeans,
  beta: number,
  others: readonly string[],
  options: AggregateOptions & { seed?: number } = {},
): SideBySide {
  const types = means.length;
  const own = means.map((row) => row.slice(0, types));
  const { L, standardErrors } = estimateL(means);
  const again = bootstrapL(means, draws, options.seed ?? 0);
  const regretsOf = (weights: readonly number[]): Regrets => {
    const at = (matrix: readonly (readonly number[])[]) => {
      const rewards = rewardMatrix(matrix, beta);
      // A type's own policy stands on the diagonal; other columns count from it.
      return rewards.map((row, k) => row.reduce((sum, value, j) => sum + weights[j] * (row[k] - value), 0));
    };
    const drawn = again.map(at);
    const regrets = at(L);
    return {
      regrets,
      regret_intervals: regrets.map((_, k) => interval(drawn.map((one) => one[k]))),
      worst_regret: Math.max(0, ...regrets),
      worst_regret_interval: interval(drawn.map((one) => Math.max(0, ...one))),
    };
  };
  const padded = (weights: readonly number[]) => [...weights, ...others.map(() => 0)];
  const square = estimateL(own).L;
  return {
    L,
    standardErrors,
    rules: rules.map((rule: Rule) => {
      const result = aggregate(square, beta, rule, options);
      return { ...result, ...regretsOf(padded(result.weights)) };
    }),
    others: others.map((name, i) => ({
      name,
      ...regretsOf(L[0].map((_, j) => (j === types + i ? 1 : 0))),
    })),
  };
}
