import type { NativeBallots } from '../native/bilinear.js';
import { type Votes, votesByAnnotator } from './votes.js';

/** Votes as the native code takes them: grouped by annotator, those of nobody last, as one voter more. */
export interface Ballots extends NativeBallots {
  /** Voters, nobody included. */
  voters: number;
  /** Votes of nobody. */
  nameless: number;
  votes: number;
  /** [votes] index among the votes that they were made of. */
  order: Int32Array;
}

const made = new WeakMap<Votes, Ballots>();

/** The ballots of some votes, made once and kept as long as they are. */
export function ballotsOf(votes: Votes): Ballots {
  let ballots = made.get(votes);
  if (!ballots) {
    ballots = group(votes);
    made.set(votes, ballots);
  }
  return ballots;
}

function group(votes: Votes): Ballots {
  const known = votes.annotators.length;
  const by = votesByAnnotator(votes);
  const nameless = votes.m - by.votes.length;
  const order = new Int32Array(votes.m);
  order.set(by.votes);
  let at = by.votes.length;
  for (let v = 0; v < votes.m; v++) if (votes.annotator[v] < 0) order[at++] = v;
  const voters = known + (nameless > 0 ? 1 : 0);
  const voterStart = new Int32Array(voters + 1);
  voterStart.set(by.offsets);
  voterStart[voters] = votes.m;

  const voteStart = new Int32Array(votes.m + 1);
  const places = new Int32Array(votes.items.length);
  const stages = new Int32Array(votes.m);
  const weights = new Float64Array(votes.m);
  const margins = new Float64Array(votes.m);
  let pairs = true;
  for (let i = 0; i < votes.m; i++) {
    const v = order[i];
    const from = votes.offsets[v];
    const n = votes.offsets[v + 1] - from;
    for (let s = 0; s < n; s++) places[voteStart[i] + s] = votes.items[from + s];
    voteStart[i + 1] = voteStart[i] + n;
    stages[i] = votes.stages[v];
    weights[i] = votes.weights[v];
    margins[i] = votes.margins[v];
    pairs &&= n === 2;
  }
  const ballots: Ballots = { voters, nameless, votes: votes.m, order, voterStart, places, tie: votes.tie ?? 0 };
  if (!pairs) ballots.voteStart = voteStart;
  if (stages.some((count) => count !== 1)) ballots.stages = stages;
  if (weights.some((weight) => weight !== 1)) ballots.weights = weights;
  if (margins.some((margin) => margin !== 0)) ballots.margins = margins;
  return ballots;
}
