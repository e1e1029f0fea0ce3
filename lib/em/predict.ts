import type { Group, Row } from '../data/types.js';
import { type Evaluation, summarise } from '../evaluation/preference.js';
import type { VoteData } from '../features/data.js';
import { sigmoid, voteLoss } from '../features/likelihood.js';
import type { RowOutcome } from '../methods/objective.js';

/** What a type says of items, and who is of which type. */
export interface Prediction {
  /** Reward of every item under each type, K arrays [n]. */
  rewards: readonly Float64Array[];
  /** [K] for annotators without responsibilities. */
  weights: ArrayLike<number>;
  /** Responsibilities by name, [K] each. */
  known: ReadonlyMap<string, ArrayLike<number>>;
}

/**
 * Each row under the mixture of an annotator's types: a vote has probability Σ_k γ_k p_k(vote), and of two items the one
 * with Σ_k γ_k σ(r_k(a) − r_k(b)) above 1/2 is expected first. The margin is that probability's log-odds for a pair, the
 * expected reward of the best minus the mean of the rest for a ranking.
 */
export function mixtureOutcomes({ votes, rows }: VoteData, prediction: Prediction): RowOutcome[] {
  return rows.map((row, v) => {
    const gamma = (row.annotator !== undefined && prediction.known.get(row.annotator)) || prediction.weights;
    const places = votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]);
    const rewards = prediction.rewards.map((all) => Float64Array.from(places, (item) => all[item]));
    const first = (a: number, b: number) =>
      rewards.reduce((sum, own, k) => sum + gamma[k] * sigmoid(own[a] - own[b]), 0);
    const scratch = new Float64Array(places.length);
    const losses = rewards.map((own) => voteLoss(own, votes.stages[v], 0, scratch));
    const least = Math.min(...losses);
    const logLikelihood = Math.log(losses.reduce((sum, loss, k) => sum + gamma[k] * Math.exp(least - loss), 0)) - least;
    let pairs = 0;
    let right = 0;
    for (let a = 0; a < votes.stages[v]; a++) {
      for (let b = a + 1; b < places.length; b++) {
        pairs++;
        if (first(a, b) > 0.5) right++;
      }
    }
    const p = row.kind === 'pair' ? first(0, 1) : 0;
    const margin =
      row.kind === 'pair'
        ? Math.log(p) - Math.log1p(-p)
        : rewards.reduce((sum, own, k) => sum + gamma[k] * lead(own), 0);
    return { group: groupOf(row), accuracy: pairs > 0 ? right / pairs : 1, margin, logLikelihood };
  });
}

function lead(rewards: Float64Array): number {
  const sum = rewards.reduce((a, b) => a + b, 0);
  return rewards[0] - (sum - rewards[0]) / Math.max(1, rewards.length - 1);
}

function groupOf(row: Row): Group {
  const { index, kind, annotator, group, weight, origin } = row;
  return { index, kind, prompt: new Int32Array(0), completions: [], annotator, group, weight, origin };
}

/** Overall, per annotator and per type (annotators by their most probable one), as `eval` prints it. */
export function evaluateMixture(
  data: VoteData,
  prediction: Prediction,
): Evaluation & { types?: Evaluation['annotators'] } {
  const rows = mixtureOutcomes(data, prediction);
  const evaluation: Evaluation & { types?: Evaluation['annotators'] } = summarise(rows);
  evaluation.overall.loss = -evaluation.overall.log_likelihood;
  const typed = rows.map((row): RowOutcome => {
    const gamma = row.group.annotator === undefined ? undefined : prediction.known.get(row.group.annotator);
    return { ...row, group: { ...row.group, annotator: gamma && `type_${likeliest(gamma) + 1}` } };
  });
  const { annotators: types } = summarise(typed);
  if (Object.keys(types).length > 0) evaluation.types = types;
  return evaluation;
}

/** Index of the largest probability; the first of equal ones. */
export function likeliest(gamma: ArrayLike<number>): number {
  let best = 0;
  for (let k = 1; k < gamma.length; k++) if (gamma[k] > gamma[best]) best = k;
  return best;
}
