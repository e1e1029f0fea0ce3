import type { Random } from '../../base/random.js';
import { splitByTokens } from '../../data/pack.js';
import type { Group } from '../../data/types.js';
import { poolHidden } from '../../features/embed.js';
import type { Model } from '../../model/model.js';
import { PluralignError } from '../../native/errors.js';
import { progress } from '../../training/progress.js';
import { agreementGraph, comparisonsOf, spectralClusters } from '../agreement.js';
import { tightestClusters } from '../kmeans.js';
import type { Annotators } from './annotators.js';
import { placesOf, stagesOf } from './votes.js';

/** Clusters → responsibilities, K arrays [annotators], the largest cluster first: so types mostly keep their numbers. */
export function oneHot(clusters: ArrayLike<number>, types: number): Float64Array[] {
  const size = (gamma: Float64Array) => gamma.reduce((a, b) => a + b, 0);
  return Array.from({ length: types }, (_, k) => Float64Array.from(clusters, (c) => (c === k ? 1 : 0))).sort(
    (a, b) => size(b) - size(a),
  );
}

/** Annotators dealt to types at random, as evenly as can be. */
export function randomStart(annotators: number, types: number, random: Random): Float64Array[] {
  return oneHot(random.shuffle(Int32Array.from({ length: annotators }, (_, u) => u % types)), types);
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

/** k-means of points [annotators, d]. */
export function clusterStart(points: Float64Array, annotators: number, types: number, random: Random): Float64Array[] {
  const d = points.length / Math.max(1, annotators);
  return oneHot(tightestClusters(points, annotators, d, types, random), types);
}

/**
 * Clusters of annotators by how they agree on the same completions. Throws BAD_DATA where no two judged the same; those who
 * share none with anyone go where the clustering puts them, and are noted.
 */
export function spectralStart(
  rows: readonly Group[],
  annotators: Annotators,
  options: { types: number; best: boolean; random: Random; note: (text: string) => void },
): Float64Array[] {
  const comparisons = rows.flatMap((row, i) =>
    comparisonsOf(
      annotators.of[i],
      row.prompt.join(),
      placesOf(row).map((c) => row.completions[c].join()),
      stagesOf(row, options.best),
    ),
  );
  const count = annotators.names.length;
  const { weights, shared } = agreementGraph(comparisons, count);
  const alone = shared.reduce((n, others) => n + (others === 0 ? 1 : 0), 0);
  if (alone === count)
    throw new PluralignError(
      'BAD_DATA',
      'em.init: spectral needs annotators who judged the same completions, and no two did; use k-means',
    );
  if (alone > 0)
    options.note(`${alone} of ${count} annotators share no comparison with anyone; their first type is arbitrary`);
  return oneHot(spectralClusters(weights, count, options.types, options.random), options.types);
}
