import { checkLengths, checkNormaliser, checkNumber, checkWeights, kernels } from './native.js';

/** One element per pair. */
export interface RewardScores {
  /** Rewards r of the chosen and the rejected completion. */
  chosen: Float64Array;
  rejected: Float64Array;
  /** How much better the chosen is known to be; absent: 0. */
  margins?: Float64Array;
  /** Row weights w ≥ 0; absent: 1. */
  weights?: Float64Array;
}

export interface RewardLossOptions {
  /** c ≥ 0 of c (r_w + r_l)², which keeps rewards centred at 0 (TRL's `center_rewards_coefficient`). Default 0. */
  centring?: number;
  /** Σ w of the whole step, where these rows are a part of it. Default: Σ w of these rows. */
  normaliser?: number;
}

export interface RewardLossResult {
  /** Σ w_i l_i / normaliser; 0 for no rows. */
  loss: number;
  rowLosses: Float64Array;
  /** Gradient of `loss` with respect to the rewards, [rows]. */
  dChosen: Float64Array;
  dRejected: Float64Array;
}

/**
 * Bradley–Terry on rewards: l = −log σ(r_w − r_l − margin) + c (r_w + r_l)². Sources: Bradley and Terry 1952; the margin
 * from Touvron et al. 2023 (Llama 2), eq. 2; the centring from Eisenstein et al. 2023. Throws `BAD_ARGUMENT`, `BAD_SHAPE`.
 */
export function rewardLoss(scores: RewardScores, options: RewardLossOptions = {}): RewardLossResult {
  const { chosen, rejected, margins, weights } = scores;
  checkLengths(chosen.length, { rejected, margins, weights });
  checkWeights('weights', weights);
  checkNumber('centring', options.centring ?? 0, 0);
  checkNormaliser('normaliser', options.normaliser);
  return kernels().reward(scores, options);
}
