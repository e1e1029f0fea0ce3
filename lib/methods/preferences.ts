import type { ResolvedLoss } from '../config/index.js';
import type { Group } from '../data/types.js';
import { badData } from '../data/where.js';
import {
  packRankings,
  type RankingScores,
  type RewardLossResult,
  type RewardScores,
  type TieModel,
  tieLoss,
} from '../losses/index.js';
import type { RowOutcome, Scores } from './objective.js';

/** log σ(x) without overflow. */
export const logSigmoid = (x: number): number => (x >= 0 ? -Math.log1p(Math.exp(-x)) : x - Math.log1p(Math.exp(x)));

export const weightOf = (groups: readonly Group[]): Float64Array => Float64Array.from(groups, (g) => g.weight);

/** Positions in `scores.groups` of the groups of each kind. */
export function byKind(groups: readonly Group[]): { pairs: number[]; rankings: number[]; unpaired: number[] } {
  const out = { pairs: [] as number[], rankings: [] as number[], unpaired: [] as number[] };
  groups.forEach((g, i) => {
    if (g.kind === 'ranking') out.rankings.push(i);
    else if (g.kind === 'unpaired') out.unpaired.push(i);
    else out.pairs.push(i);
  });
  return out;
}

/** The k-th completion of each of the groups at `at`. */
export function pick(scores: Scores, values: ArrayLike<number>, at: readonly number[], k: number): Float64Array {
  return Float64Array.from(at, (g) => values[scores.groupOffsets[g] + k]);
}

/** The groups at `at` as the ranking losses take them. */
export function rankingScores(
  scores: Scores,
  values: Float64Array,
  reference: Float64Array | undefined,
  at: readonly number[],
): RankingScores {
  const list = (of: Float64Array) =>
    Float64Array.from(at.flatMap((g) => [...of.subarray(scores.groupOffsets[g], scores.groupOffsets[g + 1])]));
  const offsets = new Int32Array(at.length + 1);
  at.forEach((g, i) => {
    offsets[i + 1] = offsets[i] + scores.groupOffsets[g + 1] - scores.groupOffsets[g];
  });
  return {
    scores: list(values),
    refScores: reference && list(reference),
    offsets,
    ...packRankings(at.map((g) => scores.groups[g].ranking!)),
    weights: weightOf(at.map((g) => scores.groups[g])),
  };
}

/** A likelihood of votes that may be ties. */
export interface TieSettings {
  type: TieModel;
  nu: number;
}

/** Of a loss whose `tie_nu` is known by now; null where it has no place for ties. */
export function tieSettings({ ties, tie_nu }: Pick<ResolvedLoss, 'ties' | 'tie_nu'>): TieSettings | null {
  return ties === 'drop' ? null : { type: ties, nu: tie_nu ?? 2 };
}

/** Throws BAD_DATA naming the first tie. */
export function refuseTies(groups: readonly Group[]): void {
  const tied = groups.find((g) => g.tie);
  if (tied) throw badData(tied.origin, 'a tie, for which loss.ties must be rao_kupper or davidson');
}

/** Pairs, tied ones among them, under their rewards; centring as in `rewardLoss`. Ties have no margin. */
export function tiedPairs(
  groups: readonly Group[],
  { chosen, rejected, margins, weights }: RewardScores,
  { type, nu, centring = 0, normaliser }: TieSettings & { centring?: number; normaliser: number },
): RewardLossResult & { logLikelihoods: Float64Array } {
  const tied = Uint8Array.from(groups, (g) => (g.tie ? 1 : 0));
  const differences = chosen.map((r, i) => r - rejected[i] - (tied[i] ? 0 : (margins?.[i] ?? 0)));
  const result = tieLoss({ differences, tied, weights }, { type, nu, normaliser });
  const sums = chosen.map((r, i) => r + rejected[i]);
  const w = (i: number) => (weights ? weights[i] : 1);
  const pull = sums.map((sum, i) => (2 * centring * w(i) * sum) / normaliser);
  return {
    loss: result.loss + sums.reduce((loss, sum, i) => loss + (centring * w(i) * sum * sum) / normaliser, 0),
    rowLosses: result.rowLosses.map((l, i) => l + centring * sums[i] * sums[i]),
    dChosen: result.dDifferences.map((d, i) => d + pull[i]),
    dRejected: result.dDifferences.map((d, i) => pull[i] - d),
    logLikelihoods: result.rowLosses.map((l) => -l),
  };
}

/** A pair under rewards that are on the scale of a Bradley–Terry model, or with the log-likelihood that another gave. */
export function pairOutcome(
  group: Group,
  chosen: number,
  rejected: number,
  logLikelihood = logSigmoid(chosen - rejected),
): RowOutcome {
  return { group, accuracy: chosen > rejected ? 1 : 0, margin: chosen - rejected, logLikelihood };
}

/** A ranking under Plackett–Luce rewards; `loss` is its negative log-likelihood. */
export function rankingOutcome(group: Group, rewards: Float64Array, loss: number): RowOutcome {
  const below = new Set(rewards.keys());
  let pairs = 0;
  let right = 0;
  for (const item of group.ranking!) {
    below.delete(item);
    pairs += below.size;
    for (const other of below) right += rewards[item] > rewards[other] ? 1 : 0;
  }
  const best = group.ranking![0];
  const rest = (rewards.reduce((a, b) => a + b, 0) - rewards[best]) / Math.max(1, rewards.length - 1);
  return { group, accuracy: pairs ? right / pairs : 1, margin: rewards[best] - rest, logLikelihood: -loss };
}

/** Weighted mean of a field of the outcomes; ties have a likelihood only. */
export function meanOf(rows: readonly RowOutcome[], field: 'accuracy' | 'margin' | 'logLikelihood'): number {
  let sum = 0;
  let weight = 0;
  for (const row of rows) {
    if (row.group.tie && field !== 'logLikelihood') continue;
    sum += row.group.weight * row[field];
    weight += row.group.weight;
  }
  return weight > 0 ? sum / weight : 0;
}
