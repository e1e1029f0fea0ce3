import { Random } from '../../base/random.js';
import { sigmoid } from '../../features/likelihood.js';
import type { Votes } from '../../features/votes.js';
import { agreement, alike, bestCriterion, bic } from '../criteria.js';
import { eStep } from '../estep.js';
import type { Criterion } from '../summary.js';
import { fitMixture, type MixtureFit, type MixtureOptions } from './mixture.js';
import { type MixtureProblem, rewardsOf, voteLikelihoods, withVotes } from './problem.js';

/** Free numbers of a mixture: what votes can tell of each type's rewards, and the types' weights. */
export function parameterCount(problem: MixtureProblem, types: number, weights: 'learned' | 'uniform'): number {
  return types * problem.rank + (weights === 'learned' ? types - 1 : 0);
}

export interface Choice {
  fit: MixtureFit;
  types: number;
  criteria: Criterion[];
}

/**
 * Fits every number of types in `candidates` and keeps the one with the smallest BIC, or with the highest likelihood of
 * annotators who were held out (a fifth of them, the same for all), or with the most stable types of annotators.
 */
export async function chooseTypes(
  problem: MixtureProblem,
  candidates: readonly number[],
  options: Omit<MixtureOptions, 'types'> & { by?: 'bic' | 'held_out' | 'stability' },
): Promise<Choice> {
  const { by = 'bic', weights = 'learned', seed = 0 } = options;
  const sides = splitAnnotators(problem.votes, 0.2, seed);
  const { m } = problem.votes;
  const fits: MixtureFit[] = [];
  const criteria: Criterion[] = [];
  for (const types of candidates) {
    const fit = await fitMixture(problem, { ...options, types });
    const parameters = parameterCount(problem, types, weights);
    let held = Number.NaN;
    let stability = Number.NaN;
    if (types <= sides.fit.annotators.length && sides.held.m > 0) {
      const quiet = { ...options, types, onRound: undefined, onNote: undefined };
      const part = await fitMixture(withVotes(problem, sides.fit), quiet);
      held = mixtureLikelihood(withVotes(problem, sides.held), part) / sides.held.m;
      stability = agreement(
        { names: problem.votes.annotators, gamma: fit.posterior.gamma },
        { names: sides.fit.annotators, gamma: part.posterior.gamma },
      );
    }
    fits.push(fit);
    criteria.push({
      types,
      log_likelihood: fit.logLikelihood / m,
      parameters,
      bic: bic(fit.logLikelihood, parameters, m),
      held_out_log_likelihood: held,
      stability,
    });
  }
  const best = bestCriterion(criteria, by);
  return { fit: fits[best], types: candidates[best], criteria };
}

/** Σ_i log Σ_k η_k p_k(votes of i) of a fitted mixture on other votes. */
export function mixtureLikelihood(
  problem: MixtureProblem,
  { weights, rewards }: { weights: ArrayLike<number>; rewards: readonly Float64Array[] },
): number {
  const { votes, n } = problem;
  const likelihoods = rewards.map((beta) =>
    voteLikelihoods(votes, rewardsOf(problem, beta, new Float64Array(n)), new Float64Array(votes.m)),
  );
  return eStep(likelihoods, votes.annotator, votes.annotators.length, weights).logLikelihood;
}

/** Whole annotators on either side; the same for the same seed. */
export function splitAnnotators(votes: Votes, share: number, seed: number): { fit: Votes; held: Votes } {
  const count = votes.annotators.length;
  const order = new Random(seed, 0x5e1d).shuffle(Int32Array.from({ length: count }, (_, i) => i));
  const held = new Set(order.subarray(0, Math.floor(count * share)));
  return { fit: votesOfAnnotators(votes, (u) => !held.has(u)), held: votesOfAnnotators(votes, (u) => held.has(u)) };
}

function votesOfAnnotators(votes: Votes, keep: (annotator: number) => boolean): Votes {
  const names: string[] = [];
  const place = votes.annotators.map((name, u) => (keep(u) ? names.push(name) - 1 : -1));
  const which = [...votes.annotator.keys()].filter((v) => place[votes.annotator[v]] >= 0);
  const offsets = new Int32Array(which.length + 1);
  which.forEach((v, i) => {
    offsets[i + 1] = offsets[i] + votes.offsets[v + 1] - votes.offsets[v];
  });
  const items = new Int32Array(offsets[which.length]);
  which.forEach((v, i) => {
    items.set(votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]), offsets[i]);
  });
  return {
    ...votes,
    annotators: names,
    annotator: Int32Array.from(which, (v) => place[votes.annotator[v]]),
    offsets,
    items,
    stages: Int32Array.from(which, (v) => votes.stages[v]),
    weights: Float64Array.from(which, (v) => votes.weights[v]),
    margins: Float64Array.from(which, (v) => votes.margins[v]),
    rows: Int32Array.from(which, (v) => votes.rows[v]),
    m: which.length,
  };
}

/** Pairs of types that have become one: [k, l], and the mean difference of their probabilities for the votes' pairs. */
export function collapsedTypes(
  problem: MixtureProblem,
  rewards: readonly Float64Array[],
): { types: [number, number]; difference: number }[] {
  const { votes, n } = problem;
  const items = rewards.map((beta) => rewardsOf(problem, beta, new Float64Array(n)));
  const out: { types: [number, number]; difference: number }[] = [];
  for (let k = 0; k < items.length; k++) {
    for (let l = k + 1; l < items.length; l++) {
      let sum = 0;
      let pairs = 0;
      for (let v = 0; v < votes.m; v++) {
        for (let a = votes.offsets[v]; a + 1 < votes.offsets[v + 1]; a++) {
          const [x, y] = [votes.items[a], votes.items[a + 1]];
          sum += Math.abs(sigmoid(items[k][x] - items[k][y]) - sigmoid(items[l][x] - items[l][y]));
          pairs++;
        }
      }
      const difference = pairs > 0 ? sum / pairs : 0;
      if (difference < alike) out.push({ types: [k, l], difference });
    }
  }
  return out;
}
