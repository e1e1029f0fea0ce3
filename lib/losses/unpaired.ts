import { PluralignError } from '../native/errors.js';
import { checkLengths, checkNormaliser, checkNumber, checkWeights, kernels } from './native.js';
import { advance, type RunningMean, weightedMean } from './running.js';

export type UnpairedLossType = 'kto' | 'bco' | 'apo_zero_unpaired';

/** The KL baseline, the running mean δ: both need the scores of the whole step at once, unless they are passed in. */
export const unpairedLossTypes: Record<UnpairedLossType, { coupled: boolean }> = {
  kto: { coupled: true },
  bco: { coupled: true },
  apo_zero_unpaired: { coupled: false },
};

/** Their order is that of `UnpairedLoss` in native/ops/preference/preference.h. */
const names = Object.keys(unpairedLossTypes) as UnpairedLossType[];

/** One element per completion. */
export interface UnpairedScores {
  /** Summed log-probability under the policy and the reference. */
  logps: Float64Array;
  refLogps: Float64Array;
  /** 1 desirable, 0 undesirable. */
  labels: Uint8Array;
  /** Row weights w ≥ 0; absent: 1. */
  weights?: Float64Array;
}

export interface UnpairedLossOptions {
  type: UnpairedLossType;
  /** β > 0. */
  beta: number;
  /** λ_D and λ_U (TRL's `desirable_weight`, `undesirable_weight`); default 1. They do not enter the normaliser. */
  desirableWeight?: number;
  undesirableWeight?: number;
  /** `kto`: the baseline, from `klBaseline`. Default: `klBaseline` of these rows themselves. */
  kl?: number;
  /** `bco`: the running mean of rewards before this step, and whether to leave it as it is (evaluation). */
  delta?: RunningMean;
  freezeDelta?: boolean;
  /** Σ w of the whole step, where these rows are a part of it. Default: Σ w of these rows. */
  normaliser?: number;
}

export interface UnpairedLossResult {
  /** Σ w_i l_i / normaliser; 0 for no rows. */
  loss: number;
  rowLosses: Float64Array;
  /** Gradient of `loss` with respect to `logps`, [rows]. */
  dLogps: Float64Array;
  /** β ρ, [rows]. */
  rewards: Float64Array;
  /** The KL baseline of `kto`; no gradient flows through it. */
  kl?: number;
  /** `bco`: the running mean to pass to the next step. */
  delta?: RunningMean;
  logps: Float64Array;
  labels: Uint8Array;
}

/**
 * KTO's baseline: the mean log-ratio, at least 0. The paper estimates it on completions of the step matched with other
 * prompts (its z_0, Ethayarajh et al. 2024, section 4.2); pass those. NaN stays NaN.
 */
export function klBaseline(logps: Float64Array, refLogps: Float64Array, weights?: Float64Array): number {
  checkLengths(logps.length, { refLogps, weights });
  const { mean } = weightedMean([logps.map((x, i) => x - refLogps[i])], weights);
  return Math.max(0, mean);
}

/**
 * Loss of completions judged alone, good or bad, and its gradient. ρ = log π/π_ref.
 *
 * | type | desirable | undesirable | source |
 * |---|---|---|---|
 * | `kto` | λ_D (1 − σ(β(ρ − KL))) | λ_U (1 − σ(β(KL − ρ))) | KTO, Ethayarajh et al. 2024, eq. 7 |
 * | `bco` | −λ_D log σ(βρ − δ) | −λ_U log σ(−(βρ − δ)) | BCO, Jung et al. 2024 |
 * | `apo_zero_unpaired` | λ_D (1 − σ(βρ)) | λ_U σ(βρ) | APO, D'Oosterlinck et al. 2024, eq. 7 |
 *
 * Throws `BAD_ARGUMENT` for options out of range, `BAD_SHAPE` for arrays of unequal length.
 */
export function unpairedLoss(scores: UnpairedScores, options: UnpairedLossOptions): UnpairedLossResult {
  const { type, beta } = options;
  if (!names.includes(type))
    throw new PluralignError(
      'BAD_ARGUMENT',
      `there is no unpaired loss "${type}"; expected one of ${names.join(', ')}`,
    );
  const { logps, refLogps, labels, weights } = scores;
  checkLengths(logps.length, { refLogps, labels, weights });
  checkWeights('weights', weights);
  checkNumber('beta', beta, 0, undefined, true);
  checkNumber('desirableWeight', options.desirableWeight ?? 1, 0);
  checkNumber('undesirableWeight', options.undesirableWeight ?? 1, 0);
  checkNormaliser('normaliser', options.normaliser);

  const rewards = logps.map((x, i) => beta * (x - refLogps[i]));
  const kl = type === 'kto' ? (options.kl ?? klBaseline(logps, refLogps, weights)) : undefined;
  let delta = type === 'bco' ? (options.delta ?? { mean: 0, count: 0 }) : undefined;
  if (delta && !options.freezeDelta) delta = advance(delta, weightedMean([rewards], weights));
  const result = kernels().unpaired(scores, {
    type: names.indexOf(type),
    beta,
    desirableWeight: options.desirableWeight,
    undesirableWeight: options.undesirableWeight,
    baseline: kl ?? delta?.mean ?? 0,
    normaliser: options.normaliser,
  });
  return { ...result, rewards, logps, labels, ...(kl === undefined ? {} : { kl }), ...(delta ? { delta } : {}) };
}
