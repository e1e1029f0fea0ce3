import type { Group } from '../data/types.js';

/** What the policy (and the reference) said of a list of groups. Completions are counted group by group, in row order. */
export interface Scores {
  groups: readonly Group[];
  /** First completion of each group and the end of the last, [groups + 1]. */
  groupOffsets: Int32Array;
  /** First value of each completion and the end of the last, [completions + 1]. */
  offsets: Int32Array;
  /** The policy's log-probability of every completion token, or the reward of every completion. */
  values: Float32Array;
  /** Σ_v π(v)² at every token, where the objective asks for it. */
  squares?: Float32Array;
  /** The reference's log-probability of every completion as `Objective.sums` gives it, where the objective needs it. */
  reference?: Float64Array;
}

/** Sums over a whole step (1 where they are nothing), so that a step split into packs gives the gradient of one big batch. */
export interface Totals {
  /** Σ w over groups. */
  weight: number;
  /** Σ w · tokens that the loss averages over. */
  tokens: number;
}

/** What a row's choice or ranking looks like under the model; for evaluation. */
export interface RowOutcome {
  group: Group;
  /** Share of the row's ordered pairs that the rewards order alike; equal rewards count as wrong. Says nothing of a tie. */
  accuracy: number;
  /** Reward of the preferred minus that of the other (rankings: of the best minus the mean of the rest). */
  margin: number;
  /** Natural-log likelihood of the row's choice or ranking. */
  logLikelihood: number;
}

export interface LossOutcome {
  /** This part's share of the step's loss: parts add up. */
  loss: number;
  /** Gradient with respect to `Scores.values`. */
  gradient: Float32Array;
  /** Weighted means over this part's groups, by the names of TRL. */
  metrics: Record<string, number>;
  /** Preferences only; empty for supervised text. */
  rows: RowOutcome[];
}

/** Everything in which methods differ: a small function on scores. */
export interface Objective {
  readonly read: 'logps' | 'reward';
  /** The reference's log-probabilities are needed. */
  readonly reference: boolean;
  /** Σ π² at every token is needed. */
  readonly squares: boolean;
  /** The loss couples rows: it must see the whole step at once. */
  readonly coupled: boolean;
  /** Log-probability of each completion from its tokens'; also applied to the reference. */
  sums(groups: readonly Group[], values: Float32Array, offsets: Int32Array): Float64Array;
  /** Names how `sums` adds tokens up: two objectives of one name add alike. */
  readonly summing: string;
  totals(groups: readonly Group[]): Totals;
  /** `training`: running statistics advance. */
  loss(scores: Scores, totals: Totals, training: boolean): LossOutcome;
  /** Running statistics, for checkpoints. */
  state(): unknown;
  restore(state: unknown): void;
}
