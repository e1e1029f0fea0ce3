import { adjustedRandIndex } from '../evaluation/rand-index.js';
import { likeliest } from './outcome.js';
import type { Criterion } from './summary.js';

/** Schwarz's criterion −2 ℓ + p log n, n the number of votes; the smallest is best. */
export function bic(logLikelihood: number, parameters: number, votes: number): number {
  return -2 * logLikelihood + parameters * Math.log(Math.max(1, votes));
}

/** Types whose choices between the votes' items differ less than this, in probability and on average, are one. */
export const alike = 0.01;

/** Who is of which type: responsibilities, K arrays [names]. */
export interface Partition {
  names: readonly string[];
  gamma: readonly Float64Array[];
}

/** Adjusted Rand index of two fits' types over the annotators that both know. */
export function agreement(a: Partition, b: Partition): number {
  const typeOf = ({ names, gamma }: Partition) =>
    new Map(names.map((name, u) => [name, likeliest(gamma.map((own) => own[u]))]));
  const [one, other] = [typeOf(a), typeOf(b)];
  const common = [...one.keys()].filter((name) => other.has(name));
  return adjustedRandIndex(
    common.map((name) => one.get(name)!),
    common.map((name) => other.get(name)!),
  );
}

/**
 * Index of the best line: the smallest BIC, the highest likelihood of annotators who were held out, or the most stable types
 * (of equal ones the most types; one type, which cannot be unstable, only where nothing else is above 1/2).
 */
export function bestCriterion(criteria: readonly Criterion[], by: 'bic' | 'held_out' | 'stability'): number {
  const score = (c: Criterion) => {
    if (by === 'bic') return -c.bic;
    if (by === 'held_out') return c.held_out_log_likelihood;
    return c.types === 1 ? 0.5 : (c.stability ?? Number.NaN);
  };
  let best = 0;
  criteria.forEach((criterion, i) => {
    const [mine, least] = [score(criterion), score(criteria[best])];
    const more = by === 'stability' && mine === least && criterion.types > criteria[best].types;
    if (mine > least || more || (Number.isNaN(least) && !Number.isNaN(mine))) best = i;
  });
  return best;
}

/** What `em.choose_by` names, in words. */
export const choiceNames = { bic: 'BIC', held_out: 'held-out likelihood', stability: 'stability' } as const;
