import type { Group } from '../data/types.js';

/** What was sampled in a step, and what is known of it before the first update. C completions of T tokens in all. */
export interface Rollout {
  /** A prompt with its completions each. */
  groups: readonly Group[];
  /** First completion of each group and the end of the last, [groups + 1]. */
  groupOffsets: Int32Array;
  /** First token of each completion and the end of the last, [C + 1]. */
  offsets: Int32Array;
  /** log π of every token when it was sampled, and under the reference, [T]. */
  old: Float32Array;
  reference: Float32Array;
  /** Rewards as one, [C]. */
  scores: Float64Array;
  /** Each reward, normalised and cut, with its weight, [rewards][C]. */
  parts: readonly Float64Array[];
  weights: readonly number[];
  /** 1 where the policy closed the completion. */
  ended: Uint8Array;
  /** The critic's value before every token, [T]; for methods with a critic. */
  values: Float32Array | null;
}

/** What a method makes of a rollout. */
export interface Estimate {
  /** [T]. */
  advantages: Float64Array;
  /** What the critic should have said, [T]. */
  returns: Float64Array | null;
  metrics: Record<string, number>;
}

/** Some completions of a rollout as an update sees them; values by token. */
export interface UpdatePart {
  /** [completions + 1]. */
  offsets: Int32Array;
  /** Under the policy as it stands. */
  logps: Float32Array;
  old: Float32Array;
  reference: Float32Array;
  advantages: Float64Array;
}

/** Over all of an update, that parts of it add up. */
export interface UpdateTotals {
  completions: number;
  tokens: number;
  /** Tokens of the whole rollout over its updates in an epoch. */
  rolloutTokens: number;
  /** The longest completion there can be. */
  longest: number;
}

export interface UpdateOutcome {
  /** This part's share of the update's loss. */
  loss: number;
  /** d loss / d logps, [tokens]. */
  gradient: Float32Array;
  /** Tokens (or sequences) whose ratio was clipped, and out of how many. */
  clipped: number;
  of: number;
}

/** Everything in which methods that learn from their own samples differ. */
export interface PolicyMethod {
  /** Samples of each prompt. */
  readonly groupSize: number;
  /** Passes over a rollout, and updates in each. */
  readonly epochs: number;
  readonly minibatches: number;
  /** The critic's loss, where there is one: (values, old values, returns) of a part → like a policy's. */
  readonly critic:
    | null
    | ((values: Float32Array, old: Float32Array, returns: Float64Array, tokens: number) => UpdateOutcome);
  /** Leave a rollout once the policy is this far from where it was sampled (mean log π_old − log π); null: never. */
  readonly stopKl: number | null;
  estimate(rollout: Rollout): Estimate;
  loss(part: UpdatePart, totals: UpdateTotals): UpdateOutcome;
  /** What lasts over steps. */
  state(): unknown;
  restore(state: unknown): void;
}

/** Σ over each completion's tokens of f(t), [completions]. */
export function sumBy(offsets: Int32Array, f: (t: number) => number): Float64Array {
  const out = new Float64Array(offsets.length - 1);
  for (let c = 0; c < out.length; c++) for (let t = offsets[c]; t < offsets[c + 1]; t++) out[c] += f(t);
  return out;
}

/** KL of a sequence by its samples, Σ log π − log π_ref (k1), [completions]. */
export function sequenceKl({ offsets, old, reference }: Rollout): Float64Array {
  return sumBy(offsets, (t) => old[t] - reference[t]);
}

/** Every token gets its completion's value, [T]. */
export function spread(values: ArrayLike<number>, offsets: Int32Array): Float64Array {
  const out = new Float64Array(offsets[offsets.length - 1]);
  for (let c = 0; c < values.length; c++) out.fill(values[c], offsets[c], offsets[c + 1]);
  return out;
}

/**
 * −min(ρ A, clip(ρ, 1 − low, 1 + high) A) with ρ = e^difference (Schulman et al. 2017, eq. 7): its value and its derivative
 * by the difference.
 */
export function surrogate(
  difference: number,
  advantage: number,
  low: number,
  high: number,
): { loss: number; slope: number; clipped: boolean } {
  const ratio = Math.exp(difference);
  const bounded = Math.max(1 - low, Math.min(1 + high, ratio));
  const clipped = ratio * advantage > bounded * advantage;
  return { loss: -(clipped ? bounded : ratio) * advantage, slope: clipped ? 0 : -ratio * advantage, clipped };
}

/** A ratio and an advantage for every token; each token's loss is weighed by `weight(completion)`. */
export function tokenSurrogate(
  { offsets, logps, old, advantages }: UpdatePart,
  low: number,
  high: number,
  weight: (completion: number) => number,
): UpdateOutcome {
  const gradient = new Float32Array(logps.length);
  const out: UpdateOutcome = { loss: 0, gradient, clipped: 0, of: logps.length };
  for (let c = 0; c < offsets.length - 1; c++) {
    const w = weight(c);
    for (let t = offsets[c]; t < offsets[c + 1]; t++) {
      const { loss, slope, clipped } = surrogate(logps[t] - old[t], advantages[t], low, high);
      out.loss += w * loss;
      gradient[t] = w * slope;
      out.clipped += clipped ? 1 : 0;
    }
  }
  return out;
}

/** Mean and unbiased variance. */
export function momentsOf(values: ArrayLike<number>): { mean: number; variance: number } {
  const n = values.length;
  let sum = 0;
  for (let i = 0; i < n; i++) sum += values[i];
  const mean = n > 0 ? sum / n : 0;
  let squares = 0;
  for (let i = 0; i < n; i++) squares += (values[i] - mean) ** 2;
  return { mean, variance: n > 1 ? squares / (n - 1) : 0 };
}

/** To deviation 1, and to mean 0 unless the mean is kept (trl's `whiten`: the variance is unbiased, 1e-8 beside it). */
export function whiten(values: Float64Array, keepMean = false): Float64Array {
  const { mean, variance } = momentsOf(values);
  const scale = 1 / Math.sqrt(variance + 1e-8);
  return values.map((v) => (v - mean) * scale + (keepMean ? mean : 0));
}
