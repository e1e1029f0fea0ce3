import { checkLengths, checkNormaliser, checkWeights, kernels } from './native.js';

export interface SftScores {
  /** Summed log-probability of each completion. */
  logps: Float64Array;
  tokens: Float64Array;
  /** Row weights w ≥ 0; absent: 1. */
  weights?: Float64Array;
}

export interface SftLossOptions {
  /** Σ w · tokens of the whole step, where these rows are a part of it. Default: of these rows. */
  normaliser?: number;
}

export interface SftLossResult {
  /** Mean negative log-likelihood per token, Σ w_i (−log π_i) / Σ w_i tokens_i; 0 for no rows. */
  loss: number;
  /** Mean negative log-likelihood per token of each row. */
  rowLosses: Float64Array;
  /** Gradient of `loss` with respect to `logps`, [rows]. */
  dLogps: Float64Array;
}

/** Negative log-likelihood by the global count of tokens, so that accumulation equals one big batch. Throws `BAD_SHAPE`. */
export function sftLoss(scores: SftScores, options: SftLossOptions = {}): SftLossResult {
  const { logps, tokens, weights } = scores;
  checkLengths(logps.length, { tokens, weights });
  checkWeights('weights', weights);
  checkNormaliser('normaliser', options.normaliser);
  return kernels().sft(scores, options);
}
