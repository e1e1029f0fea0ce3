import type { ResolvedLoss } from '../config/index.js';
import type { Group } from '../data/types.js';
import { type RankingLossType, rankingLoss, rewardLoss, rewardMetrics } from '../losses/index.js';
import { PluralignError } from '../native/errors.js';
import type { LossOutcome, Objective, Scores, Totals } from './objective.js';
import {
  byKind,
  meanOf,
  pairOutcome,
  pick,
  rankingOutcome,
  rankingScores,
  refuseTies,
  type TieSettings,
  tiedPairs,
  tieSettings,
  weightOf,
} from './preferences.js';

/**
 * A reward model: a scalar head on the last token's hidden row. Pairs by Bradley–Terry with the row's margin and optional
 * centring, or with a likelihood that knows ties; rankings by Plackett–Luce on the rewards.
 */
export class RewardObjective implements Objective {
  readonly read = 'reward';
  readonly reference = false;
  readonly squares = false;
  readonly coupled = false;
  readonly summing = 'reward';

  readonly #loss: ResolvedLoss;
  /** Of a pair every one of them is Bradley–Terry. */
  readonly #listwise: RankingLossType;
  readonly #ties: TieSettings | null;

  constructor(loss: ResolvedLoss) {
    this.#loss = loss;
    const listwise = loss.type.map((t) => t.type).filter((type) => type !== 'bradley_terry');
    if (loss.type.length > 1)
      throw new PluralignError('BAD_CONFIG', 'loss.type: a reward model takes one loss, found several');
    this.#listwise = (listwise[0] as RankingLossType | undefined) ?? 'plackett_luce';
    this.#ties = tieSettings(loss);
  }

  check(groups: readonly Group[]): void {
    const bad = groups.find((g) => g.kind !== 'pair' && g.kind !== 'ranking');
    if (bad)
      throw new PluralignError(
        'BAD_DATA',
        `${bad.origin.file}:${bad.origin.line}: method reward needs pairs or rankings`,
      );
    if (!this.#ties) refuseTies(groups);
  }

  sums(_groups: readonly Group[], values: Float32Array): Float64Array {
    return Float64Array.from(values);
  }

  totals(groups: readonly Group[]): Totals {
    return { weight: groups.reduce((sum, g) => sum + g.weight, 0) || 1, tokens: 1 };
  }

  loss(scores: Scores, totals: Totals): LossOutcome {
    const { groups, groupOffsets } = scores;
    const rewards = Float64Array.from(scores.values);
    const gradient = new Float32Array(rewards.length);
    const outcome: LossOutcome = { loss: 0, gradient, metrics: {}, rows: [] };
    const { pairs, rankings } = byKind(groups);
    if (pairs.length > 0) {
      const input = {
        chosen: pick(scores, rewards, pairs, 0),
        rejected: pick(scores, rewards, pairs, 1),
        margins: Float64Array.from(pairs, (g) => groups[g].margin ?? this.#loss.margin),
        weights: weightOf(pairs.map((g) => groups[g])),
      };
      const options = { centring: this.#loss.centring, normaliser: totals.weight };
      const some = pairs.map((g) => groups[g]);
      const tied = this.#ties && tiedPairs(some, input, { ...options, ...this.#ties });
      const result = tied ?? rewardLoss(input, options);
      pairs.forEach((g, i) => {
        gradient[groupOffsets[g]] = result.dChosen[i];
        gradient[groupOffsets[g] + 1] = result.dRejected[i];
        outcome.rows.push(pairOutcome(groups[g], input.chosen[i], input.rejected[i], tied?.logLikelihoods[i]));
      });
      outcome.loss += result.loss;
      const { mean_reward, min_reward, max_reward } = rewardMetrics(input);
      Object.assign(outcome.metrics, { mean_reward, min_reward, max_reward });
    }
    if (rankings.length > 0) {
      const input = rankingScores(scores, rewards, undefined, rankings);
      const result = rankingLoss(input, { type: this.#listwise, beta: 1, normaliser: totals.weight });
      rankings.forEach((g, i) => {
        const [from, to] = [input.offsets[i], input.offsets[i + 1]];
        gradient.set(result.dScores.subarray(from, to), groupOffsets[g]);
        outcome.rows.push(rankingOutcome(groups[g], result.rewards.subarray(from, to), result.rowLosses[i]));
      });
      outcome.loss += result.loss;
    }
    outcome.metrics.accuracy = meanOf(outcome.rows, 'accuracy');
    outcome.metrics.margin = meanOf(outcome.rows, 'margin');
    return outcome;
  }

  state(): unknown {
    return null;
  }

  restore(): void {}
}
