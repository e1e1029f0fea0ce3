import type { Random } from '../../base/random.js';
import type { Votes } from '../../features/votes.js';
import { PluralignError } from '../../native/errors.js';
import { agreementGraph, comparisonsOf } from '../agreement.js';
import { type MixtureProblem, spreads } from './problem.js';

/**
 * Rewards to start from: those of one type for all, plus normal noise under which items' rewards spread by about 1.
 * Equal types would never part: responsibilities would stay the types' weights.
 */
export function randomRewards(problem: MixtureProblem, pooled: Float64Array, random: Random): Float64Array {
  const spread = spreads(problem);
  const live = Math.max(
    1,
    spread.reduce((count, s) => count + (s > 0 ? 1 : 0), 0),
  );
  return pooled.map((b, j) => b + (spread[j] > 0 ? random.normal() / (spread[j] * Math.sqrt(live)) : 0));
}

/** Mean of what an annotator chose minus the mean of what they left, over their votes; [N, d]. */
export function meanDifferences({ votes, features, d }: MixtureProblem, annotators: number): Float64Array {
  const out = new Float64Array(annotators * d);
  const counts = new Float64Array(annotators);
  const add = (at: number, item: number, weight: number) => {
    if (!features) out[at + item] += weight;
    else for (let j = 0; j < d; j++) out[at + j] += weight * features[item * d + j];
  };
  for (let v = 0; v < votes.m; v++) {
    const places = votes.offsets[v + 1] - votes.offsets[v];
    if (places < 2 || votes.stages[v] === 0) continue;
    const at = votes.annotator[v] * d;
    // Places are worth from 1 (best) to −1 evenly; those that were not ranked share theirs.
    const rest = places - votes.stages[v];
    for (let l = 0; l < places; l++) {
      const place = l < votes.stages[v] ? l : votes.stages[v] + (rest - 1) / 2;
      add(at, votes.items[votes.offsets[v] + l], 1 - (2 * place) / (places - 1));
    }
    counts[votes.annotator[v]]++;
  }
  for (let u = 0; u < annotators; u++) for (let j = 0; j < d; j++) if (counts[u] > 0) out[u * d + j] /= counts[u];
  return out;
}

/** How annotators agree on pairs of items that they both compared, [N, N]. Throws BAD_DATA where no two share any. */
export function agreementOf(votes: Votes): Float64Array {
  const comparisons = Array.from({ length: votes.m }, (_, v) => {
    const places = Array.from(votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]), String);
    return comparisonsOf(votes.annotator[v], '', places, votes.stages[v]);
  }).flat();
  const { weights, shared } = agreementGraph(comparisons, votes.annotators.length);
  if (shared.some((others) => others > 0)) return weights;
  throw new PluralignError(
    'BAD_DATA',
    'em.init: spectral needs annotators who compared the same items, and no two did; use k-means',
  );
}
