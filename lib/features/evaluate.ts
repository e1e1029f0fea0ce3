import type { Group, Row } from '../data/types.js';
import { type Evaluation, summarise } from '../evaluation/preference.js';
import { tieLoss } from '../losses/ties.js';
import type { RowOutcome } from '../methods/objective.js';
import { pairOutcome, rankingOutcome } from '../methods/preferences.js';
import type { VoteData } from './data.js';
import { voteLoss } from './likelihood.js';
import type { Scorer } from './population.js';
import type { Ties } from './ties.js';

/** What each row looks like under everyone's own rewards; an annotator at `known` or above gets the generic reward. */
export function outcomes(
  { votes, rows }: VoteData,
  known: number,
  scorer: Scorer,
  ties: Ties | null = null,
): RowOutcome[] {
  return rows.map((row, v) => {
    const u = votes.annotator[v] < known ? votes.annotator[v] : -1;
    const from = votes.offsets[v];
    const rewards = Float64Array.from(votes.items.subarray(from, votes.offsets[v + 1]), (item) => scorer(u, item));
    const group = groupOf(row, votes.stages[v]);
    if (row.kind === 'pair') {
      const [chosen, rejected] = rewards;
      if (!ties) return pairOutcome(group, chosen, rejected);
      const pair = { differences: Float64Array.of(chosen - rejected), tied: Uint8Array.of(row.tie ? 1 : 0) };
      return pairOutcome(group, chosen, rejected, -tieLoss(pair, ties).rowLosses[0]);
    }
    return rankingOutcome(group, rewards, voteLoss(rewards, votes.stages[v], 0, new Float64Array(rewards.length)));
  });
}

/** Overall, per annotator and per group, of voters seen and unseen, as `eval` prints it. */
export function evaluateVotes(data: VoteData, known: number, scorer: Scorer, ties: Ties | null = null): Evaluation {
  const rows = outcomes(data, known, scorer, ties);
  const seen = new Set(data.votes.annotators.slice(0, known));
  const evaluation = summarise(rows, undefined, known > 0 ? seen : undefined);
  evaluation.overall.loss = -evaluation.overall.log_likelihood;
  return evaluation;
}

/** A row as the measures of preferences take it; places stand in the order of the choice. */
function groupOf(row: Row, stages: number): Group {
  return {
    index: row.index,
    kind: row.kind,
    prompt: new Int32Array(0),
    completions: [],
    ranking: Array.from({ length: stages }, (_, s) => s),
    annotator: row.annotator,
    group: row.group,
    ...(row.kind === 'pair' && row.tie ? { tie: true as const } : {}),
    weight: row.weight,
    origin: row.origin,
  };
}
