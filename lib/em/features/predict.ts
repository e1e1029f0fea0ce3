import type { Group, Row } from '../../data/types.js';
import type { VoteData } from '../../features/data.js';
import { evaluateVotes, type TypedEvaluation, type TypedVote } from '../outcome.js';

/** What a type says of items, and who is of which type. */
export interface Prediction {
  /** Reward of every item under each type, K arrays [n]. */
  rewards: readonly Float64Array[];
  /** [K] for annotators without responsibilities. */
  weights: ArrayLike<number>;
  /** Responsibilities by name, [K] each. */
  known: ReadonlyMap<string, ArrayLike<number>>;
}

/** Votes over items as every type sees them. */
export function typedVotes({ votes, rows }: VoteData, rewards: readonly Float64Array[]): TypedVote[] {
  return rows.map((row, v) => {
    const places = votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]);
    const own = rewards.map((all) => Float64Array.from(places, (item) => all[item]));
    return { group: groupOf(row), rewards: own, stages: votes.stages[v] };
  });
}

function groupOf(row: Row): Group {
  const { index, kind, annotator, group, weight, origin } = row;
  return { index, kind, prompt: new Int32Array(0), completions: [], annotator, group, weight, origin };
}

/** Overall, per annotator and per type (annotators by their most probable one), as `eval` prints it. */
export function evaluateMixture(data: VoteData, { rewards, weights, known }: Prediction): TypedEvaluation {
  return evaluateVotes(typedVotes(data, rewards), weights, known);
}
