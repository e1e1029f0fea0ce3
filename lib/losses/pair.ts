import { PluralignError } from '../native/errors.js';
import { checkLengths, checkNormaliser, checkNumber, checkWeights, kernels } from './native.js';
import { advance, type RunningMean, weightedMean } from './running.js';

/** A pair loss; `pairLossTypes` has the formulas. */
export type PairLossType =
  | 'sigmoid'
  | 'robust'
  | 'hinge'
  | 'ipo'
  | 'exo_pair'
  | 'nca_pair'
  | 'bco_pair'
  | 'sppo_hard'
  | 'aot'
  | 'aot_unpaired'
  | 'apo_zero'
  | 'apo_down'
  | 'discopop'
  | 'sft'
  | 'sigmoid_norm'
  | 'simpo'
  | 'cpo'
  | 'orpo';

export type Divergence = 'reverse_kl' | 'forward_kl' | 'js_divergence' | 'alpha_divergence';

/** In the order of `Divergence` in native/ops/preference/preference.h. */
const divergences: readonly Divergence[] = ['reverse_kl', 'forward_kl', 'js_divergence', 'alpha_divergence'];

export interface PairLossTraits {
  /** Rows depend on each other: the loss needs the scores of the whole step at once. */
  coupled: boolean;
  /** Needs the reference's log-probabilities. */
  reference: boolean;
  /** Uses log-probabilities averaged over tokens. */
  perToken: boolean;
  /** Built on the difference of log-ratios, so that an f-divergence may replace them. */
  divergence: boolean;
}

function traits(flags: string): PairLossTraits {
  const has = (word: string): boolean => flags.split(' ').includes(word);
  return { coupled: has('coupled'), reference: has('ref'), perToken: has('token'), divergence: has('f') };
}

/**
 * Every pair loss (names are TRL's). ρ = log π/π_ref of a completion, w chosen, l rejected, Δ = ρ_w − ρ_l, ρ̄ = ρ / tokens,
 * ε `labelSmoothing`, σ the logistic function.
 *
 * | type | loss of a pair | source |
 * |---|---|---|
 * | `sigmoid` | −(1−ε) log σ(βΔ) − ε log σ(−βΔ) | DPO, Rafailov et al. 2023, eq. 7; conservative with ε > 0 |
 * | `robust` | [−(1−ε) log σ(βΔ) + ε log σ(−βΔ)] / (1−2ε) | Robust DPO, Chowdhury et al. 2024 |
 * | `hinge` | max(0, 1 − βΔ) | SLiC-HF, Zhao et al. 2023; RSO, Liu et al. 2023 |
 * | `ipo` | (ρ̄_w − ρ̄_l − 1/(2β))² | IPO, Azar et al. 2023, eq. 17, per token |
 * | `exo_pair` | KL([σ(βΔ), σ(−βΔ)] ‖ [1−ε, ε]), ε > 0 | EXO, Ji et al. 2024, eq. 16 |
 * | `nca_pair` | −log σ(βρ_w) − ½ log σ(−βρ_w) − ½ log σ(−βρ_l) | NCA, Chen et al. 2024 |
 * | `bco_pair` | −log σ(βρ_w − δ) − log σ(−(βρ_l − δ)) | BCO, Jung et al. 2024; δ the running mean of βρ |
 * | `sppo_hard` | (ρ_w − 1/(2β))² + (ρ_l + 1/(2β))² | SPPO, Wu et al. 2024, eq. 4.7 with P = 1, 0 |
 * | `aot` | `sigmoid` of sort(log π_w/π_l) − sort(log ref_w/ref_l) | AOT, Melnyk et al. 2024 |
 * | `aot_unpaired` | `sigmoid` of sort(ρ_w) − sort(ρ_l) | AOT, Melnyk et al. 2024 |
 * | `apo_zero` | 1 − σ(βρ_w) + σ(βρ_l) | APO, D'Oosterlinck et al. 2024, eq. 7 |
 * | `apo_down` | σ(βρ_w) + 1 − σ(βΔ) | APO, D'Oosterlinck et al. 2024, eq. 8 |
 * | `discopop` | m = σ(βΔ/τ): (1−m)(−log σ(βΔ)) + m exp(−βΔ) | DiscoPOP, Lu et al. 2024, eq. 5 |
 * | `sft` | −log π_w, mean over the step's chosen tokens | negative log-likelihood |
 * | `sigmoid_norm` | `sigmoid` of ρ̄_w − ρ̄_l | length-normalised DPO, Lambert et al. 2024 (Tülu 3) |
 * | `simpo` | `sigmoid` of mean log π_w − mean log π_l, minus γ | SimPO, Meng et al. 2024, eq. 6 |
 * | `cpo` | `sigmoid` of log π_w − log π_l, + α · `sft` | CPO, Xu et al. 2024 |
 * | `orpo` | `sft` − β log σ(log odds_w − log odds_l) | ORPO, Hong et al. 2024, eq. 6 (β is its λ) |
 */
export const pairLossTypes: Record<PairLossType, PairLossTraits> = {
  sigmoid: traits('ref f'),
  robust: traits('ref f'),
  hinge: traits('ref f'),
  ipo: traits('ref f token'),
  exo_pair: traits('ref f'),
  nca_pair: traits('ref'),
  bco_pair: traits('ref coupled'),
  sppo_hard: traits('ref'),
  aot: traits('ref coupled'),
  aot_unpaired: traits('ref coupled'),
  apo_zero: traits('ref'),
  apo_down: traits('ref'),
  discopop: traits('ref f'),
  sft: traits('f'),
  sigmoid_norm: traits('ref f token'),
  simpo: traits('token'),
  cpo: traits(''),
  orpo: traits('token'),
};

/** Their order is that of `PairLoss` in native/ops/preference/preference.h. */
const names = Object.keys(pairLossTypes) as PairLossType[];

/** One element per pair. Log-probabilities are natural, summed over the completion's tokens. */
export interface PairScores {
  chosen: Float64Array;
  rejected: Float64Array;
  /** Under the reference; may be absent where every loss type is reference-free. */
  refChosen?: Float64Array;
  refRejected?: Float64Array;
  chosenTokens: Float64Array;
  rejectedTokens: Float64Array;
  /** Row weights w ≥ 0; absent: 1. */
  weights?: Float64Array;
  /** Constants on the row losses that do not enter the normaliser, such as `wpoWeights`. Not with `aot` types. */
  factors?: Float64Array;
}

export interface PairLossOptions {
  /** One type, or a weighted sum of several. */
  type: PairLossType | { type: PairLossType; weight: number }[];
  /** β > 0 (IPO's τ, ORPO's λ). */
  beta: number;
  /** ε in [0, ½); `exo_pair` needs ε > 0 (its authors use 1e-3). Default 0. */
  labelSmoothing?: number;
  /** `bco_pair`: the running mean of rewards before this step; default: none yet, so δ is this batch's mean. */
  delta?: RunningMean;
  /** `bco_pair`: leave `delta` as it is (evaluation). TRL 1.13's DPO trainer is `{mean: 0, count: 0}` with this set. */
  freezeDelta?: boolean;
  /** `discopop`: τ > 0. Default 0.05. */
  discopopTau?: number;
  /** `simpo`: the target margin γ. Default 0.5. */
  simpoGamma?: number;
  /** `cpo`: α, the weight of its negative log-likelihood. Default 1. */
  cpoAlpha?: number;
  /**
   * f-divergence instead of the reverse KL (Wang et al. 2023, f-DPO): ρ becomes f′(exp ρ) in the types whose traits say
   * `divergence`. forward_kl 1 − e^−ρ; js_divergence log 2 + log σ(ρ); alpha_divergence (e^((a−1)ρ) − 1)/(a−1).
   * Exponents are cut at 80.
   */
  divergence?: Divergence;
  /** a of `alpha_divergence`. Default 0.5. */
  divergenceAlpha?: number;
  /** Σ w of the whole step, where these rows are a part of it. Default: Σ w of these rows. */
  normaliser?: number;
  /** Σ w · chosen tokens of the whole step, for `sft`, `cpo` and `orpo`. Default: of these rows. */
  tokenNormaliser?: number;
}

export interface PairLossResult {
  /** Σ w_i l_i / normaliser; 0 for no rows. */
  loss: number;
  /** l_i, [rows]. */
  rowLosses: Float64Array;
  /** Gradient of `loss` with respect to `chosen` and `rejected`, [rows]. */
  dChosen: Float64Array;
  dRejected: Float64Array;
  /**
   * Implicit rewards, [rows]: β ρ; without a reference β log π, per token where every type is per token. They carry no
   * gradient.
   */
  rewardsChosen: Float64Array;
  rewardsRejected: Float64Array;
  /** The scores that came in, for metrics. */
  logpsChosen: Float64Array;
  logpsRejected: Float64Array;
  /** `bco_pair`: the running mean to pass to the next step. */
  delta?: RunningMean;
}

function checkOptions(terms: { type: PairLossType; weight: number }[], options: PairLossOptions): void {
  if (!terms.length) throw new PluralignError('BAD_ARGUMENT', 'type is an empty list; expected at least one loss type');
  for (const { type, weight } of terms) {
    if (!Object.hasOwn(pairLossTypes, type))
      throw new PluralignError('BAD_ARGUMENT', `there is no pair loss "${type}"; expected one of ${names.join(', ')}`);
    if (!Number.isFinite(weight)) throw new PluralignError('BAD_ARGUMENT', `the weight of ${type} is ${weight}`);
  }
  const has = (type: PairLossType): boolean => terms.some((term) => term.type === type);
  checkNumber('beta', options.beta, 0, undefined, true);
  checkNumber('labelSmoothing', options.labelSmoothing ?? 0, 0, 0.5);
  if (has('exo_pair')) checkNumber('labelSmoothing (for exo_pair)', options.labelSmoothing ?? 0, 0, 0.5, true);
  checkNumber('discopopTau', options.discopopTau ?? 1, 0, undefined, true);
  for (const name of ['simpoGamma', 'cpoAlpha', 'divergenceAlpha'] as const)
    if (options[name] !== undefined) checkNumber(name, options[name], Number.NEGATIVE_INFINITY);
  checkNormaliser('normaliser', options.normaliser);
  checkNormaliser('tokenNormaliser', options.tokenNormaliser);
  const divergence = options.divergence ?? 'reverse_kl';
  if (!divergences.includes(divergence))
    throw new PluralignError(
      'BAD_ARGUMENT',
      `there is no divergence "${divergence}"; expected one of ${divergences.join(', ')}`,
    );
  const odd = divergence === 'reverse_kl' ? undefined : terms.find((term) => !pairLossTypes[term.type].divergence);
  if (odd)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `divergence ${divergence} does not apply to ${odd.type}, which is not built on a difference of log-ratios; use reverse_kl`,
    );
}

function checkScores(scores: PairScores, types: PairLossType[]): void {
  const { chosen, weights, factors, ...others } = scores;
  checkLengths(chosen.length, { ...others, weights, factors });
  checkWeights('weights', weights);
  checkWeights('factors', factors);
  const needy = types.find((type) => pairLossTypes[type].reference);
  if (needy && !(scores.refChosen && scores.refRejected))
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${needy} needs refChosen and refRejected, the reference's log-probabilities`,
    );
  const matched = factors && types.find((type) => type === 'aot' || type === 'aot_unpaired');
  if (matched)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${matched} matches completions across rows, so factors of a row do not apply to it`,
    );
}

function rewards(
  logps: Float64Array,
  ref: Float64Array | undefined,
  tokens: Float64Array | null,
  beta: number,
): Float64Array {
  return logps.map((x, i) => (beta * (x - (ref ? ref[i] : 0))) / (tokens ? Math.max(1, tokens[i]) : 1));
}

/**
 * Loss of chosen and rejected completions and its gradient with respect to their log-probabilities; `pairLossTypes` lists
 * the formulas. Throws `BAD_ARGUMENT` for options out of range or a missing reference, `BAD_SHAPE` for arrays of unequal
 * length. A NaN score gives a NaN loss.
 */
export function pairLoss(scores: PairScores, options: PairLossOptions): PairLossResult {
  const terms = typeof options.type === 'string' ? [{ type: options.type, weight: 1 }] : options.type;
  checkOptions(terms, options);
  const types = terms.map((term) => term.type);
  checkScores(scores, types);

  const reference = scores.refChosen && scores.refRejected;
  const perToken = !reference && types.every((type) => pairLossTypes[type].perToken);
  const rewardsChosen = rewards(scores.chosen, scores.refChosen, perToken ? scores.chosenTokens : null, options.beta);
  const rewardsRejected = rewards(
    scores.rejected,
    scores.refRejected,
    perToken ? scores.rejectedTokens : null,
    options.beta,
  );
  let delta = options.delta ?? { mean: 0, count: 0 };
  if (!options.freezeDelta) delta = advance(delta, weightedMean([rewardsChosen, rewardsRejected], scores.weights));

  const result = kernels().pair(scores, {
    types: Int32Array.from(types, (type) => names.indexOf(type)),
    typeWeights: Float64Array.from(terms, (term) => term.weight),
    beta: options.beta,
    labelSmoothing: options.labelSmoothing,
    delta: delta.mean,
    discopopTau: options.discopopTau,
    simpoGamma: options.simpoGamma,
    cpoAlpha: options.cpoAlpha,
    divergence: divergences.indexOf(options.divergence ?? 'reverse_kl'),
    divergenceAlpha: options.divergenceAlpha,
    normaliser: options.normaliser,
    tokenNormaliser: options.tokenNormaliser,
  });
  return {
    ...result,
    rewardsChosen,
    rewardsRejected,
    logpsChosen: scores.chosen,
    logpsRejected: scores.rejected,
    ...(types.includes('bco_pair') ? { delta } : {}),
  };
}
