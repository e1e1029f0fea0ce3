import type { PairLossResult } from './pair.js';
import type { RankingLossResult, RankingScores } from './ranking.js';
import type { RewardScores } from './reward.js';
import type { UnpairedLossResult } from './unpaired.js';

function mean(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i];
  return sum / values.length;
}

export type DpoMetrics = Record<
  'rewards/chosen' | 'rewards/rejected' | 'rewards/accuracies' | 'rewards/margins' | 'logps/chosen' | 'logps/rejected',
  number
>;

/** TRL's metrics of a preference step: plain means over its rows (NaN for no rows). A tie counts as wrong. */
export function dpoMetrics(result: PairLossResult): DpoMetrics {
  const { rewardsChosen, rewardsRejected } = result;
  return {
    'rewards/chosen': mean(rewardsChosen),
    'rewards/rejected': mean(rewardsRejected),
    'rewards/accuracies': mean(rewardsChosen.map((r, i) => (r > rewardsRejected[i] ? 1 : 0))),
    'rewards/margins': mean(rewardsChosen.map((r, i) => r - rewardsRejected[i])),
    'logps/chosen': mean(result.logpsChosen),
    'logps/rejected': mean(result.logpsRejected),
  };
}

export type RewardMetrics = Record<'accuracy' | 'margin' | 'min_reward' | 'mean_reward' | 'max_reward', number>;

/** TRL's metrics of a reward step. A tie counts as wrong. */
export function rewardMetrics({ chosen, rejected }: RewardScores): RewardMetrics {
  const all = [...chosen, ...rejected];
  return {
    accuracy: mean(chosen.map((r, i) => (r > rejected[i] ? 1 : 0))),
    margin: mean(chosen.map((r, i) => r - rejected[i])),
    min_reward: all.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY),
    mean_reward: mean(all),
    max_reward: all.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY),
  };
}

/**
 * Of rankings: `rewards/accuracies`, the share of ordered pairs (a ranked response against each that is ranked below it or
 * not at all) that the rewards order alike, ties wrong; `rewards/top1`, the share of groups whose best has the one highest
 * reward. Groups that order nothing do not count.
 */
export function rankingMetrics(
  scores: Pick<RankingScores, 'offsets' | 'ranking' | 'rankingOffsets'>,
  { rewards }: Pick<RankingLossResult, 'rewards'>,
): Record<'rewards/accuracies' | 'rewards/top1', number> {
  let pairs = 0;
  let right = 0;
  let groups = 0;
  let top = 0;
  for (let i = 0; i + 1 < scores.offsets.length; i++) {
    const s = rewards.subarray(scores.offsets[i], scores.offsets[i + 1]);
    const below = new Set(s.keys());
    scores.ranking.subarray(scores.rankingOffsets[i], scores.rankingOffsets[i + 1]).forEach((item, place) => {
      below.delete(item);
      const won = [...below].filter((other) => s[item] > s[other]).length;
      pairs += below.size;
      right += won;
      if (place === 0 && below.size) {
        groups++;
        top += won === below.size ? 1 : 0;
      }
    });
  }
  return { 'rewards/accuracies': right / pairs, 'rewards/top1': top / groups };
}

/** TRL's metrics of a KTO step; those of a side without rows are left out. */
export function unpairedMetrics({ rewards, logps, labels, kl }: UnpairedLossResult): Record<string, number> {
  const metrics: Record<string, number> = kl === undefined ? {} : { kl };
  for (const [name, label] of [
    ['chosen', true],
    ['rejected', false],
  ] as const) {
    const side = (values: Float64Array): Float64Array => values.filter((_, i) => Boolean(labels[i]) === label);
    if (!labels.some((x) => Boolean(x) === label)) continue;
    metrics[`rewards/${name}`] = mean(side(rewards));
    metrics[`logps/${name}`] = mean(side(logps));
  }
  if ('rewards/chosen' in metrics && 'rewards/rejected' in metrics)
    metrics['rewards/margins'] = metrics['rewards/chosen'] - metrics['rewards/rejected'];
  return metrics;
}
