import type { ResolvedLoss } from '../config/index.js';
import type { Group } from '../data/types.js';
import {
  completionWeights,
  dpoMetrics,
  type PairLossOptions,
  type PairLossType,
  pairLoss,
  pairLossTypes,
  type RankingLossType,
  type RunningMean,
  rankingLoss,
  sharedLengths,
  spreadGradient,
  sumTokens,
  type UnpairedLossType,
  unpairedLoss,
  unpairedLossTypes,
  unpairedMetrics,
  wpoWeights,
} from '../losses/index.js';
import { PluralignError } from '../native/errors.js';
import type { LossOutcome, Objective, RowOutcome, Scores, Totals } from './objective.js';
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

const divergences = {
  reverse_kl: 'reverse_kl',
  forward_kl: 'forward_kl',
  js_divergence: 'js_divergence',
  alpha_divergence: 'alpha_divergence',
} as const;

/** Losses that rank lists; `sigmoid` is Plackett–Luce of a pair. */
const listLosses = { sigmoid: 1, plackett_luce: 1, best: 1, s_dpo: 1, lipo: 1 };

/**
 * Direct preference optimisation (Rafailov et al. 2023) and its family on one policy: pairs with every loss of
 * `pairLossTypes`, rankings with Plackett–Luce (its J = 2 is the sigmoid loss), completions judged alone with KTO and BCO.
 */
export class DpoObjective implements Objective {
  readonly read = 'logps';
  readonly reference: boolean;
  readonly squares: boolean;
  readonly coupled: boolean;
  readonly summing: string;
  readonly #loss: ResolvedLoss;
  readonly #unpaired: UnpairedLossType | null;
  /** How rankings are scored; null where the loss knows pairs only. */
  readonly #listwise: RankingLossType | null;
  /** Tied pairs too: DPO-RK or DPO-D (Chen et al. 2024). */
  readonly #ties: TieSettings | null;
  #delta: RunningMean | undefined;

  constructor(loss: ResolvedLoss) {
    this.#loss = loss;
    const names = loss.type.map((t) => t.type);
    const alone = names.find((name) => name in unpairedLossTypes) as UnpairedLossType | undefined;
    this.#unpaired = alone ?? null;
    const listwise = names.find((name) => name in listLosses && name !== 'sigmoid') as RankingLossType | undefined;
    this.#listwise = names.every((name) => name in listLosses) ? (listwise ?? 'plackett_luce') : null;
    if ((alone || (listwise && listwise !== 'plackett_luce')) && names.length > 1)
      throw new PluralignError('BAD_CONFIG', `loss.type: ${alone ?? listwise} cannot be summed with other losses`);
    const pairTypes = this.#pairTypes().map((t) => pairLossTypes[t.type]);
    this.reference = alone !== undefined || pairTypes.some((t) => t.reference);
    this.coupled = alone ? unpairedLossTypes[alone].coupled : pairTypes.some((t) => t.coupled);
    this.squares = loss.use_weighting;
    this.summing = loss.ld_alpha === null ? 'tokens' : `length desensitising ${loss.ld_alpha}`;
    if (loss.modpo && !this.reference)
      throw new PluralignError('BAD_CONFIG', `loss.modpo: needs a loss with a reference, found ${names.join(' + ')}`);
    this.#ties = tieSettings(loss);
  }

  /** Every listwise loss but LiPO is the sigmoid loss on a pair, and LiPO a multiple of it. */
  #pairTypes(): { type: PairLossType; weight: number }[] {
    if (this.#unpaired) return [];
    return this.#loss.type.map(({ type, weight }) => ({
      type: (type in listLosses ? 'sigmoid' : type) as PairLossType,
      weight,
    }));
  }

  /** Refuses rows that the configured loss cannot use, naming the first. */
  check(groups: readonly Group[]): void {
    if (!this.#ties) refuseTies(groups);
    for (const g of groups) {
      const problem =
        g.kind === 'ranking' && this.#listwise === null
          ? `a ranking, for which loss.type must be one of ${Object.keys(listLosses).join(', ')}, found ${this.#loss.type.map((t) => t.type).join(' + ')}`
          : g.kind === 'ranking' && this.#loss.ld_alpha !== null
            ? 'a ranking, for which loss.ld_alpha must be null'
            : g.kind === 'unpaired' && !this.#unpaired
              ? 'a completion with a label, for which loss.type must be kto, bco or apo_zero_unpaired'
              : g.kind === 'text'
                ? 'text without a preference; method dpo needs pairs, rankings or labelled completions'
                : null;
      if (problem) throw new PluralignError('BAD_DATA', `${g.origin.file}:${g.origin.line}: ${problem}`);
    }
  }

  #lengthDesensitising(groups: readonly Group[]) {
    const { ld_alpha } = this.#loss;
    if (ld_alpha === null) return undefined;
    const shared = groups.flatMap((g) => {
      if (g.kind !== 'pair') return g.completions.map((c) => c.length);
      const [n] = sharedLengths([g.completions[0].length], [g.completions[1].length]);
      return [n, n];
    });
    return { alpha: ld_alpha, shared };
  }

  sums(groups: readonly Group[], values: Float32Array, offsets: Int32Array): Float64Array {
    return sumTokens(values, offsets, this.#lengthDesensitising(groups));
  }

  totals(groups: readonly Group[]): Totals {
    let weight = 0;
    let tokens = 0;
    for (const g of groups) {
      // These losses take a pair as two judged completions.
      weight += g.weight * (this.#unpaired && g.kind === 'pair' ? 2 : 1);
      tokens += g.weight * (g.kind === 'ranking' ? 0 : g.completions[0].length);
    }
    // Rows that all weigh nothing give a loss of nothing.
    return { weight: weight || 1, tokens: tokens || 1 };
  }

  loss(scores: Scores, totals: Totals, training: boolean): LossOutcome {
    const { groups, offsets } = scores;
    const logps = this.sums(groups, scores.values, offsets);
    const dLogps = new Float64Array(logps.length);
    const outcome: LossOutcome = { loss: 0, gradient: new Float32Array(0), metrics: {}, rows: [] };
    const { pairs, rankings } = byKind(groups);
    if (this.#ties && pairs.length > 0) this.#tiePart(scores, logps, pairs, totals, dLogps, outcome);
    else if (this.#unpaired) this.#unpairedPart(scores, logps, totals, training, dLogps, outcome);
    else {
      if (pairs.length > 0) this.#pairPart(scores, logps, pairs, totals, training, dLogps, outcome);
    }
    if (rankings.length > 0 && !this.#unpaired) this.#rankingPart(scores, logps, rankings, totals, dLogps, outcome);
    outcome.gradient = spreadGradient(dLogps, offsets, this.#lengthDesensitising(groups));
    if (outcome.rows.length > 0) outcome.metrics['rewards/accuracies'] = meanOf(outcome.rows, 'accuracy');
    return outcome;
  }

  #options(totals: Totals, training: boolean): PairLossOptions {
    const l = this.#loss;
    return {
      type: this.#pairTypes(),
      beta: l.beta,
      labelSmoothing: l.label_smoothing,
      discopopTau: l.discopop_tau,
      simpoGamma: l.simpo_gamma,
      cpoAlpha: l.cpo_alpha,
      divergence: divergences[l.f_divergence],
      divergenceAlpha: l.f_alpha_divergence_coef,
      delta: this.#delta,
      freezeDelta: !training,
      normaliser: totals.weight,
      tokenNormaliser: totals.tokens,
    };
  }

  #pairPart(
    scores: Scores,
    logps: Float64Array,
    at: number[],
    totals: Totals,
    training: boolean,
    dLogps: Float64Array,
    outcome: LossOutcome,
  ): void {
    const { groups, groupOffsets, reference } = scores;
    const lengths = (k: number) => Float64Array.from(at, (g) => groups[g].completions[k].length);
    let factors: Float64Array | undefined;
    if (scores.squares) {
      const weights = completionWeights(scores.values, scores.squares, scores.offsets);
      factors = wpoWeights(pick(scores, weights, at, 0), pick(scores, weights, at, 1));
    }
    const result = pairLoss(
      {
        chosen: pick(scores, logps, at, 0),
        rejected: pick(scores, logps, at, 1),
        refChosen: reference && pick(scores, reference, at, 0),
        refRejected: reference && pick(scores, reference, at, 1),
        chosenTokens: lengths(0),
        rejectedTokens: lengths(1),
        weights: weightOf(at.map((g) => groups[g])),
        factors,
      },
      this.#options(totals, training),
    );
    if (training) this.#delta = result.delta;
    at.forEach((g, i) => {
      dLogps[groupOffsets[g]] = result.dChosen[i];
      dLogps[groupOffsets[g] + 1] = result.dRejected[i];
      outcome.rows.push(pairOutcome(groups[g], result.rewardsChosen[i], result.rewardsRejected[i]));
    });
    outcome.loss += result.loss;
    Object.assign(outcome.metrics, dpoMetrics(result));
  }

  #tiePart(
    scores: Scores,
    logps: Float64Array,
    at: number[],
    totals: Totals,
    dLogps: Float64Array,
    outcome: LossOutcome,
  ): void {
    const { groups, groupOffsets, reference } = scores;
    const { beta } = this.#loss;
    const rewards = logps.map((logp, i) => beta * (logp - reference![i]));
    const input = {
      chosen: pick(scores, rewards, at, 0),
      rejected: pick(scores, rewards, at, 1),
      weights: weightOf(at.map((g) => groups[g])),
    };
    const some = at.map((g) => groups[g]);
    const result = tiedPairs(some, input, { ...this.#ties!, normaliser: totals.weight });
    at.forEach((g, i) => {
      dLogps[groupOffsets[g]] = beta * result.dChosen[i];
      dLogps[groupOffsets[g] + 1] = beta * result.dRejected[i];
      outcome.rows.push(pairOutcome(groups[g], input.chosen[i], input.rejected[i], result.logLikelihoods[i]));
    });
    outcome.loss += result.loss;
    outcome.metrics['rewards/margins'] = meanOf(outcome.rows, 'margin');
  }

  #rankingPart(
    scores: Scores,
    logps: Float64Array,
    at: number[],
    totals: Totals,
    dLogps: Float64Array,
    outcome: LossOutcome,
  ): void {
    const { groups, groupOffsets } = scores;
    const input = rankingScores(scores, logps, scores.reference, at);
    const result = rankingLoss(input, {
      type: this.#listwise!,
      beta: this.#loss.beta,
      normaliser: totals.weight,
    });
    at.forEach((g, i) => {
      const [from, to] = [input.offsets[i], input.offsets[i + 1]];
      dLogps.set(result.dScores.subarray(from, to), groupOffsets[g]);
      outcome.rows.push(rankingOutcome(groups[g], result.rewards.subarray(from, to), result.rowLosses[i]));
    });
    outcome.loss += result.loss;
    const rows: RowOutcome[] = outcome.rows.slice(-at.length);
    outcome.metrics['rewards/margins'] ??= meanOf(rows, 'margin');
  }

  /** Every completion is judged alone; a pair is a good and a bad one. */
  #unpairedPart(
    scores: Scores,
    logps: Float64Array,
    totals: Totals,
    training: boolean,
    dLogps: Float64Array,
    outcome: LossOutcome,
  ): void {
    const l = this.#loss;
    const { groups, groupOffsets } = scores;
    const labels = groups.flatMap((g) => (g.kind === 'pair' ? [1, 0] : [g.label ? 1 : 0]));
    const result = unpairedLoss(
      {
        logps,
        refLogps: scores.reference!,
        labels: Uint8Array.from(labels),
        weights: Float64Array.from(groups.flatMap((g) => g.completions.map(() => g.weight))),
      },
      {
        type: this.#unpaired!,
        beta: l.beta,
        desirableWeight: l.desirable_weight,
        undesirableWeight: l.undesirable_weight,
        delta: this.#delta,
        freezeDelta: !training,
        normaliser: totals.weight,
      },
    );
    if (training) this.#delta = result.delta;
    dLogps.set(result.dLogps);
    groups.forEach((g, i) => {
      if (g.kind === 'pair')
        outcome.rows.push(pairOutcome(g, result.rewards[groupOffsets[i]], result.rewards[groupOffsets[i] + 1]));
    });
    outcome.loss += result.loss;
    Object.assign(outcome.metrics, unpairedMetrics(result));
  }

  state(): unknown {
    return { delta: this.#delta ?? null };
  }

  restore(state: unknown): void {
    this.#delta = (state as { delta: RunningMean | null } | null)?.delta ?? undefined;
  }
}
