import { PluralignError } from '../native/errors.js';
import { checkLengths, checkNormaliser, checkNumber, checkWeights, kernels } from './native.js';

/** In the order of `RankingLoss` in native/ops/preference/preference.h; `s_dpo` is `best` by another name. */
const codes: Record<RankingLossType, number> = { plackett_luce: 0, best: 1, s_dpo: 1, lipo: 2 };

export type RankingLossType = 'plackett_luce' | 'best' | 's_dpo' | 'lipo';

/** Groups of responses of any size, one after another. */
export interface RankingScores {
  /** Summed log-probability of each response, or its reward, [responses of all groups]. */
  scores: Float64Array;
  /** Under the reference; absent: 0, for rewards. */
  refScores?: Float64Array;
  /** First response of each group and the end of the last, [groups + 1]. */
  offsets: Int32Array;
  /** Indices inside the group, best first; shorter than the group: top-m, [ranked responses of all groups]. */
  ranking: Int32Array;
  /** First entry of each group's ranking and the end of the last, [groups + 1]. */
  rankingOffsets: Int32Array;
  /** Weight w ≥ 0 of each group; absent: 1. */
  weights?: Float64Array;
}

export interface RankingLossOptions {
  type: RankingLossType;
  /** β > 0; 1 for rewards. */
  beta: number;
  /** Σ w of the whole step, where these groups are a part of it. Default: Σ w of these groups. */
  normaliser?: number;
}

export interface RankingLossResult {
  /** Σ w_i l_i / normaliser over groups; 0 for no groups. */
  loss: number;
  /** l_i, [groups]; for `plackett_luce` the negative log-likelihood of the group's ranking. */
  rowLosses: Float64Array;
  /** Gradient of `loss` with respect to `scores`. */
  dScores: Float64Array;
  /** s = β (scores − refScores), [responses]. */
  rewards: Float64Array;
}

/** Rankings as lists → `ranking` and `rankingOffsets`. */
export function packRankings(rankings: number[][]): { ranking: Int32Array; rankingOffsets: Int32Array } {
  const rankingOffsets = new Int32Array(rankings.length + 1);
  rankings.forEach((ranking, i) => {
    rankingOffsets[i + 1] = rankingOffsets[i] + ranking.length;
  });
  return { ranking: Int32Array.from(rankings.flat()), rankingOffsets };
}

/**
 * Loss of rankings on s = β log π/π_ref (or on rewards), and its gradient.
 *
 * | type | loss of a group ranked (1) ≻ (2) ≻ … | source |
 * |---|---|---|
 * | `plackett_luce` | Σ_k [logsumexp over those not ranked before k of s − s_(k)] | Plackett 1975; DPO, Rafailov et al. 2023, appendix A.3 |
 * | `best`, `s_dpo` | −log softmax of the best among all = −log σ(−log Σ_neg exp(s_neg − s_(1))) | S-DPO, Chen et al. 2024 |
 * | `lipo` | Σ_{ψi>ψj} abs(G_i − G_j) abs(1/D_i − 1/D_j) log(1 + exp(−(s_i − s_j))) | LiPO-λ, Liu et al. 2024 |
 *
 * Plackett–Luce of a full ranking has J − 1 terms, of the m best of J responses m: those not ranked stay in every
 * denominator. With J = 2 it is `sigmoid` DPO. For `lipo` the grade ψ falls by one from m (best) to 1 and is 0 for those not
 * ranked, G = 2^ψ − 1, D = log(1 + place by the current s), held constant.
 *
 * Throws `BAD_ARGUMENT` for a ranking with repeated or out-of-range entries, naming group and entry; `BAD_SHAPE`.
 */
export function rankingLoss(scores: RankingScores, options: RankingLossOptions): RankingLossResult {
  if (!Object.hasOwn(codes, options.type))
    throw new PluralignError(
      'BAD_ARGUMENT',
      `there is no ranking loss "${options.type}"; expected ${Object.keys(codes).join(', ')}`,
    );
  const { refScores, weights } = scores;
  checkLengths(scores.scores.length, { refScores });
  checkLengths(scores.offsets.length - 1, { weights });
  checkWeights('weights', weights);
  checkNumber('beta', options.beta, 0, undefined, true);
  checkNormaliser('normaliser', options.normaliser);
  const { beta, normaliser } = options;
  const result = kernels().ranking(scores, { type: codes[options.type], beta, normaliser });
  return { ...result, rewards: scores.scores.map((s, i) => beta * (s - (refScores ? refScores[i] : 0))) };
}
