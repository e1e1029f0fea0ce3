import type { Random } from '../base/random.js';
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

/** Cluster of each of N points [N, d], [N]: k-means++ seeds, then Lloyd's steps. */
export function kMeans(points: Float64Array, count: number, d: number, k: number, random: Random): Int32Array {
  const distance = (u: number, centre: Float64Array, c: number) => {
    let sum = 0;
    for (let j = 0; j < d; j++) sum += (points[u * d + j] - centre[c * d + j]) ** 2;
    return sum;
  };
  const centres = new Float64Array(k * d);
  const nearest = new Float64Array(count).fill(Number.POSITIVE_INFINITY);
  for (let c = 0; c < k; c++) {
    let pick = random.below(count);
    if (c > 0) {
      const total = nearest.reduce((a, b) => a + b, 0);
      let left = random.uniform() * total;
      for (pick = 0; pick < count - 1 && left >= nearest[pick]; pick++) left -= nearest[pick];
    }
    centres.set(points.subarray(pick * d, (pick + 1) * d), c * d);
    for (let u = 0; u < count; u++) nearest[u] = Math.min(nearest[u], distance(u, centres, c));
  }
  const cluster = new Int32Array(count).fill(-1);
  for (let round = 0; round < 30; round++) {
    let moved = 0;
    const sums = new Float64Array(k * d);
    const sizes = new Float64Array(k);
    for (let u = 0; u < count; u++) {
      let best = 0;
      let least = Number.POSITIVE_INFINITY;
      for (let c = 0; c < k; c++) {
        const here = distance(u, centres, c);
        if (here < least) {
          least = here;
          best = c;
        }
      }
      if (cluster[u] !== best) moved++;
      cluster[u] = best;
      sizes[best]++;
      for (let j = 0; j < d; j++) sums[best * d + j] += points[u * d + j];
    }
    if (moved === 0) break;
    for (let c = 0; c < k; c++)
      if (sizes[c] > 0) for (let j = 0; j < d; j++) centres[c * d + j] = sums[c * d + j] / sizes[c];
  }
  return cluster;
}
