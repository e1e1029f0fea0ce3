import type { Votes } from '../../features/votes.js';
import { eStep } from '../estep.js';
import type { Responsibility } from '../files.js';
import { type MixtureProblem, rewardsOf, voteLikelihoods } from './problem.js';

/** Rewards of all items under each type, K arrays [n]. */
export function itemRewards(problem: MixtureProblem, rewards: readonly Float64Array[]): Float64Array[] {
  return rewards.map((beta) => rewardsOf(problem, beta, new Float64Array(problem.n)));
}

/** What the votes of annotators, new ones too, say of their types. `rewards`: K arrays [n] of items' rewards. */
export function assignTypes(
  votes: Votes,
  rewards: readonly Float64Array[],
  weights: ArrayLike<number>,
  temperature = 1,
): Responsibility[] {
  const likelihoods = rewards.map((own) => voteLikelihoods(votes, own, new Float64Array(votes.m)));
  const { gamma } = eStep(likelihoods, votes.annotator, votes.annotators.length, weights, temperature);
  return responsibilitiesOf(votes, gamma);
}

export function responsibilitiesOf(votes: Votes, gamma: readonly Float64Array[]): Responsibility[] {
  const counts = new Int32Array(votes.annotators.length);
  for (const u of votes.annotator) counts[u]++;
  return votes.annotators.map((annotator, u) => ({
    annotator,
    probabilities: gamma.map((own) => own[u]),
    votes: counts[u],
  }));
}
