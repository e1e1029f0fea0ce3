import type { Random } from '../base/random.js';

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

/** The tightest of several k-means clusterings of N points [N, d]. */
export function tightestClusters(
  points: Float64Array,
  count: number,
  d: number,
  k: number,
  random: Random,
  starts = 10,
): Int32Array {
  let best: Int32Array | null = null;
  let least = Number.POSITIVE_INFINITY;
  for (let start = 0; start < starts; start++) {
    const clusters = kMeans(points, count, d, k, random);
    const spread = within(points, clusters, k, d);
    if (best === null || spread < least) [best, least] = [clusters, spread];
  }
  return best!;
}

/** Σ of squared distances to the clusters' means. */
function within(points: Float64Array, clusters: Int32Array, k: number, d: number): number {
  const sums = new Float64Array(k * d);
  const sizes = new Float64Array(k);
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
