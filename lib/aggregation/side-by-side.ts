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

/** Rules that need samples, beside those of a matrix. */
export type SampleRule = Rule | 'max-min-sample';
export const sampleRules: readonly SampleRule[] = [...rules, 'max-min-sample'];

/** Every aggregator on one estimate of L. */
export interface SideBySide {
  L: number[][];
  standardErrors: number[][];
  rules: (Omit<Aggregate, 'rule'> & Regrets & { rule: SampleRule })[];
  /** Policies that are no type's own, such as one for all. */
  others: (Regrets & { name: string })[];
}

const draws = 1000;

/**
 * Regrets of every rule's mixture of the K types' policies, and of other policies. The first K columns of `means` are the
 * types' own policies, the rest the `others`. The weights are those of the whole sample; the intervals hold them fixed and
 * redraw the prompts.
 *
 * `max-min-sample` is MaxMin-RLHF as its code has it: the minimum over types is taken of each sample, E[min_k r_k], and not
 * of the types' expectations. In a mixture's weights that is linear, so that one policy is best.
 */
export function sideBySide(
  means: PromptMeans,
  least: readonly Float64Array[],
  beta: number,
  others: readonly string[],
  options: AggregateOptions & { seed?: number } = {},
): SideBySide {
  const types = means.length;
  const own = means.map((row) => row.slice(0, types));
  const square = estimateL(own).L;
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
  const bySample = (): SideBySide['rules'][number] => {
    const values = least.slice(0, types).map((of) => of.reduce((a, b) => a + b, 0) / of.length);
    const best = values.indexOf(Math.max(...values));
    const weights = values.map((_, j) => (j === best ? 1 : 0));
    const rewards = rewardMatrix(square, beta).map((row) => row[best]);
    return { rule: 'max-min-sample', weights, rewards, ...regretsOf(padded(weights)) };
  };
  const padded = (weights: readonly number[]) => [...weights, ...others.map(() => 0)];
  return {
    L,
    standardErrors,
    rules: [
      ...rules.map((rule) => {
        const result = aggregate(square, beta, rule, options);
        return { ...result, ...regretsOf(padded(result.weights)) };
      }),
      bySample(),
    ],
    others: others.map((name, i) => ({
      name,
      ...regretsOf(L[0].map((_, j) => (j === types + i ? 1 : 0))),
    })),
  };
}
