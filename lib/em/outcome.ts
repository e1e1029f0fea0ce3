import { type Evaluation, summarise } from '../evaluation/preference.js';
import { adjustedRandIndex } from '../evaluation/rand-index.js';
import { expectedCalibrationError } from '../evaluation/reliability.js';
import { sigmoid, voteLoss } from '../features/likelihood.js';
import type { RowOutcome } from '../methods/objective.js';

/** A vote as every type sees it. */
export interface TypedVote {
  group: RowOutcome['group'];
  /** Rewards of its places under each type, best first and those not ranked last, K arrays [places]. */
  rewards: readonly Float64Array[];
  /** Choices made one after another; 1 for a pair. */
  stages: number;
}

/** −log p_k(vote) under one type, without the row's weight; `margin`: what a pair's choice needs. */
export function voteLossOf(rewards: Float64Array, stages: number, margin = 0): number {
  return voteLoss(rewards, stages, margin, new Float64Array(rewards.length));
}

/**
 * A vote under the mixture of its annotator's types: it has probability Σ_k γ_k p_k(vote), and of two items the one with
 * Σ_k γ_k σ(r_k(a) − r_k(b)) above 1/2 is expected first. The margin is that probability's log-odds for a pair, the expected
 * reward of the best minus the mean of the rest for a ranking.
 */
export function mixtureOutcome({ group, rewards, stages }: TypedVote, gamma: ArrayLike<number>): RowOutcome {
  const count = rewards[0].length;
  const first = (a: number, b: number) => rewards.reduce((sum, own, k) => sum + gamma[k] * sigmoid(own[a] - own[b]), 0);
  const logLikelihood = logMixture(
    rewards.map((own) => voteLossOf(own, stages)),
    gamma,
  );
  let pairs = 0;
  let right = 0;
  for (let a = 0; a < stages; a++) {
    for (let b = a + 1; b < count; b++) {
      pairs++;
      if (first(a, b) > 0.5) right++;
    }
  }
  const margin =
    group.kind === 'pair'
      ? // Each side in logs: 1 − p would be 0 where rewards lie far apart.
        logLikelihood -
        logMixture(
          rewards.map((own) => voteLossOf(Float64Array.of(own[1], own[0]), 1)),
          gamma,
        )
      : rewards.reduce((sum, own, k) => sum + gamma[k] * lead(own), 0);
  return { group, accuracy: pairs > 0 ? right / pairs : 1, margin, logLikelihood };
}

/** log Σ_k γ_k exp(−loss_k). */
function logMixture(losses: readonly number[], gamma: ArrayLike<number>): number {
  const least = losses.reduce((low, loss, k) => (gamma[k] > 0 ? Math.min(low, loss) : low), Number.POSITIVE_INFINITY);
  return (
    Math.log(losses.reduce((sum, loss, k) => sum + (gamma[k] > 0 ? gamma[k] * Math.exp(least - loss) : 0), 0)) - least
  );
}

function lead(rewards: Float64Array): number {
  const sum = rewards.reduce((a, b) => a + b, 0);
  return rewards[0] - (sum - rewards[0]) / Math.max(1, rewards.length - 1);
}

export type TypedEvaluation = Evaluation & {
  /** By type, annotators counting to their most probable one. */
  types?: Evaluation['annotators'];
};

/**
 * Overall, per annotator and per type, as `eval` prints it. `known`: responsibilities by name; others get `weights`.
 * Where rows name groups, also how well the annotators' types agree with them.
 */
export function evaluateVotes(
  votes: readonly TypedVote[],
  weights: ArrayLike<number>,
  known: ReadonlyMap<string, ArrayLike<number>>,
): TypedEvaluation {
  const gammaOf = (name: string | undefined) => (name === undefined ? undefined : known.get(name));
  const rows = votes.map((vote) => mixtureOutcome(vote, gammaOf(vote.group.annotator) ?? weights));
  const evaluation: TypedEvaluation = summarise(rows);
  evaluation.overall.loss = -evaluation.overall.log_likelihood;
  const typed = rows.map((row): RowOutcome => {
    const gamma = gammaOf(row.group.annotator);
    return { ...row, group: { ...row.group, annotator: gamma && `type_${likeliest(gamma) + 1}` } };
  });
  const { annotators: types } = summarise(typed);
  if (Object.keys(types).length > 0) evaluation.types = types;
  Object.assign(
    evaluation.overall,
    agreementWithGroups(
      votes.map((vote) => vote.group),
      known,
    ),
  );
  return evaluation;
}

/** How the types found agree with the groups that annotators are known to be of. */
export interface Agreement {
  /** Of annotators' likeliest types and their groups. */
  adjusted_rand_index: number;
  /**
   * Calibration of responsibilities: of the largest probability as the confidence that an annotator is of the group that most
   * annotators of their likeliest type are of.
   */
  responsibility_ece: number;
}

/** Undefined where rows do not name groups for two annotators at least. */
export function agreementWithGroups(
  rows: readonly { annotator?: string; group?: string }[],
  known: ReadonlyMap<string, ArrayLike<number>>,
): Agreement | undefined {
  const groups = new Map<string, string>();
  for (const { annotator, group } of rows) {
    if (annotator !== undefined && group !== undefined && known.has(annotator)) groups.set(annotator, group);
  }
  if (groups.size < 2) return undefined;
  const people = [...groups].map(([name, group]) => {
    const gamma = known.get(name)!;
    const type = likeliest(gamma);
    return { group, type, certainty: gamma[type] };
  });
  const usual = usualGroups(people);
  return {
    adjusted_rand_index: adjustedRandIndex(
      people.map((p) => p.group),
      people.map((p) => p.type),
    ),
    responsibility_ece: expectedCalibrationError(
      people.map((p) => p.certainty),
      people.map((p) => usual.get(p.type) === p.group),
    ),
  };
}

/** The commonest group of each type's people. */
function usualGroups(people: readonly { group: string; type: number }[]): Map<number, string> {
  const counts = new Map<number, Map<string, number>>();
  for (const { group, type } of people) {
    const own = counts.get(type) ?? new Map<string, number>();
    counts.set(type, own.set(group, (own.get(group) ?? 0) + 1));
  }
  return new Map([...counts].map(([type, own]) => [type, [...own].sort((a, b) => b[1] - a[1])[0][0]]));
}

/** Index of the largest probability; the first of equal ones. */
export function likeliest(gamma: ArrayLike<number>): number {
  let best = 0;
  for (let k = 1; k < gamma.length; k++) if (gamma[k] > gamma[best]) best = k;
  return best;
}
