import type { Random } from '../../base/random.js';
import { splitByTokens } from '../../data/pack.js';
import type { Group } from '../../data/types.js';
import { poolHidden } from '../../features/embed.js';
import type { Model } from '../../model/model.js';
import { progress } from '../../training/progress.js';
import { kMeans } from '../kmeans.js';
import type { Annotators } from './annotators.js';
import { placesOf } from './votes.js';

/** Clusters → responsibilities, K arrays [annotators]. */
export function oneHot(clusters: ArrayLike<number>, types: number): Float64Array[] {
  return Array.from({ length: types }, (_, k) => Float64Array.from(clusters, (c) => (c === k ? 1 : 0)));
}

/** Annotators dealt to types at random, as evenly as can be. */
export function randomStart(annotators: number, types: number, random: Random): Float64Array[] {
  const deal = Int32Array.from({ length: annotators }, (_, u) => u % types);
  for (let i = annotators - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [deal[i], deal[j]] = [deal[j], deal[i]];
  }
  return oneHot(deal, types);
}

/**
 * Each annotator's mean difference of embeddings, preferred minus rejected, [annotators, d]: the base's final hidden rows,
 * mean over a completion's tokens. A ranking's places are worth from 1 (best) to −1 evenly, those not ranked share theirs.
 * Columns are scaled to mean square 1 over rows, so that no direction of the hidden space speaks loudest.
 */
export async function meanDifferences(
  model: Model,
  rows: readonly Group[],
  annotators: Annotators,
  options: { maxTokens: number; abort?: Int32Array; quiet?: boolean },
): Promise<Float64Array> {
  const d = model.shape.hiddenSize;
  const count = annotators.names.length;
  const sums = new Float64Array(count * d);
  const squares = new Float64Array(d);
  const bar = progress(rows.length, 'embed', { quiet: options.quiet });
  let done = 0;
  try {
    for (const run of splitByTokens(rows, 1, options.maxTokens)) {
      const completions = run.reduce((n, g) => n + g.completions.length, 0);
      const pooled = new Float32Array(completions * d);
      await poolHidden(model, run, 'mean', pooled, options.abort);
      let at = 0;
      run.forEach((group, i) => {
        const difference = new Float64Array(d);
        worth(group).forEach((w, c) => {
          for (let j = 0; j < d; j++) difference[j] += w * pooled[(at + c) * d + j];
        });
        at += group.completions.length;
        const u = annotators.of[done + i];
        for (let j = 0; j < d; j++) {
          sums[u * d + j] += difference[j] / annotators.votes[u];
          squares[j] += difference[j] ** 2 / rows.length;
        }
      });
      done += run.length;
      bar.update(done);
    }
  } finally {
    bar.stop();
  }
  for (let u = 0; u < count; u++)
    for (let j = 0; j < d; j++) if (squares[j] > 0) sums[u * d + j] /= Math.sqrt(squares[j]);
  return sums;
}

/** What each completion of a row is worth: 1 for the best to −1 for the last, Σ 0. */
function worth(group: Group): number[] {
  const places = placesOf(group);
  const n = places.length;
  const ranked = group.ranking?.length ?? n;
  const out = new Array<number>(n).fill(0);
  places.forEach((completion, place) => {
    const at = place < ranked ? place : ranked + (n - ranked - 1) / 2;
    out[completion] = n > 1 ? 1 - (2 * at) / (n - 1) : 0;
  });
  return out;
}

/** k-means of points [annotators, d]: the tightest of several starts. */
export function clusterStart(points: Float64Array, annotators: number, types: number, random: Random): Float64Array[] {
  const d = points.length / Math.max(1, annotators);
  let best: Int32Array | null = null;
  let least = Number.POSITIVE_INFINITY;
  for (let start = 0; start < 10; start++) {
    const clusters = kMeans(points, annotators, d, types, random);
    const spread = within(points, clusters, types, d);
    if (spread < least) [best, least] = [clusters, spread];
  }
  return oneHot(best!, types);
}

/** Σ of squared distances to the clusters' means. */
function within(points: Float64Array, clusters: Int32Array, types: number, d: number): number {
  const sums = new Float64Array(types * d);
  const sizes = new Float64Array(types);
  clusters.forEach((c, u) => {
    sizes[c]++;
    for (let j = 0; j < d; j++) sums[c * d + j] += points[u * d + j];
  });
  let total = 0;
  clusters.forEach((c, u) => {
    for (let j = 0; j < d; j++) total += (points[u * d + j] - sums[c * d + j] / sizes[c]) ** 2;
  });
  return total;
}
