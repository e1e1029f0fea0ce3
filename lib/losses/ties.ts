import { PluralignError } from '../native/errors.js';
import { checkLengths, checkNormaliser, checkNumber, checkWeights, kernels } from './native.js';

/** In the order of `TieModel` in native/ops/preference/preference.h. */
export const tieModels = ['rao_kupper', 'davidson'] as const;
export type TieModel = (typeof tieModels)[number];

/** One element per vote on two completions. */
export interface TieScores {
  /** d: reward of the first (where the vote is decided: of the chosen) minus the other's. */
  differences: Float64Array;
  /** 1 where the vote calls the two equal. */
  tied: Uint8Array;
  /** Row weights w ≥ 0; absent: 1. */
  weights?: Float64Array;
}

export interface TieLossOptions {
  type: TieModel;
  /** How common ties are: above 1 for `rao_kupper`, above 0 for `davidson`. */
  nu: number;
  /** Σ w of the whole step, where these rows are a part of it. Default: Σ w of these rows. */
  normaliser?: number;
}

export interface TieLossResult {
  /** Σ w_i l_i / normaliser; 0 for no rows. */
  loss: number;
  /** −log P of what each vote says, [rows]. */
  rowLosses: Float64Array;
  /** Gradient of `loss` with respect to `differences`, [rows]. */
  dDifferences: Float64Array;
  /** Derivative of `loss` with respect to log ν. */
  dLogNu: number;
}

/**
 * Bradley–Terry with ties.
 *
 * | type | P(first) | P(tie) | source |
 * |---|---|---|---|
 * | `rao_kupper` | σ(d − log ν) | (ν² − 1) σ(d − log ν) σ(−d − log ν) | Rao & Kupper 1967, eq. 2.3 |
 * | `davidson` | 1 / (1 + e^−d + ν e^(−d/2)) | ν e^(−d/2) / (1 + e^−d + ν e^(−d/2)) | Davidson 1970, eq. 2.4 |
 *
 * With d = β Δρ these are DPO-RK and DPO-D (Chen et al. 2024), whose Davidson ν is half of this one. Throws `BAD_ARGUMENT`,
 * `BAD_SHAPE`.
 */
export function tieLoss(scores: TieScores, options: TieLossOptions): TieLossResult {
  const { type, nu, normaliser } = options;
  if (!tieModels.includes(type))
    throw new PluralignError('BAD_ARGUMENT', `there is no tie model "${type}"; expected ${tieModels.join(', ')}`);
  checkLengths(scores.differences.length, { tied: scores.tied, weights: scores.weights });
  checkWeights('weights', scores.weights);
  checkNumber('nu', nu, type === 'rao_kupper' ? 1 : 0, undefined, true);
  checkNormaliser('normaliser', normaliser);
  return kernels().ties(scores, { type: tieModels.indexOf(type), nu, normaliser });
}

/**
 * ν under which a vote between two equals ties as often as `share` says: a moment estimate, low where rewards differ much.
 * The share is kept within (0.001, 0.999), so that a data set without ties, or of nothing else, still has a likelihood.
 */
export function tieNu(type: TieModel, share: number): number {
  const t = Math.min(0.999, Math.max(0.001, share));
  return type === 'rao_kupper' ? (1 + t) / (1 - t) : (2 * t) / (1 - t);
}
