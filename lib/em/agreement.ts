import type { Random } from '../base/random.js';
import { orthonormalise } from '../features/linalg.js';
import { PluralignError } from '../native/errors.js';
import { tightestClusters } from './kmeans.js';

/** Someone's preference between two things, whichever stood first: `key` names the two, `sign` is 1 or −1 for one or the other. */
export interface Comparison {
  annotator: number;
  key: string;
  sign: number;
}

/** Comparisons of every two places of a vote, best first; the first `stages` are above all that follow. */
export function comparisonsOf(
  annotator: number,
  scope: string,
  names: readonly string[],
  stages: number,
): Comparison[] {
  const out: Comparison[] = [];
  for (let a = 0; a < stages; a++) {
    for (let b = a + 1; b < names.length; b++) {
      if (names[a] === names[b]) continue;
      const first = names[a] < names[b];
      const key = JSON.stringify([scope, ...(first ? [names[a], names[b]] : [names[b], names[a]])]);
      out.push({ annotator, key, sign: first ? 1 : -1 });
    }
  }
  return out;
}

/** The graph has N² entries. */
const mostAnnotators = 8000;

/**
 * How annotators agree, [N, N] symmetric: (agreements − disagreements) / (their number + 1) over the comparisons that two
 * share, 0 where they share none and on the diagonal. `shared`: with how many others each shares one. Throws BAD_CONFIG for
 * more annotators than `mostAnnotators`.
 */
export function agreementGraph(
  comparisons: readonly Comparison[],
  annotators: number,
): { weights: Float64Array; shared: Int32Array } {
  const byKey = new Map<string, Map<number, number>>();
  for (const { annotator, key, sign } of comparisons) {
    const votes = byKey.get(key) ?? new Map<number, number>();
    byKey.set(key, votes);
    votes.set(annotator, (votes.get(annotator) ?? 0) + sign);
  }
  const n = annotators;
  if (n > mostAnnotators)
    throw new PluralignError(
      'BAD_CONFIG',
      `em.init: spectral looks at every pair of annotators; ${n} of them need ${((24 * n * n) / 1e9).toFixed(1)} GB, ` +
        `and at most ${mostAnnotators} are taken; use k-means`,
    );
  const sums = new Float64Array(n * n);
  const counts = new Float64Array(n * n);
  for (const votes of byKey.values()) {
    const list = [...votes].filter(([, sign]) => sign !== 0);
    for (const [u, s] of list) {
      for (const [v, t] of list) {
        if (u === v) continue;
        sums[u * n + v] += Math.sign(s) * Math.sign(t);
        counts[u * n + v]++;
      }
    }
  }
  const shared = new Int32Array(n);
  const weights = sums.map((sum, i) => sum / (counts[i] + 1));
  counts.forEach((count, i) => {
    if (count > 0) shared[Math.floor(i / n)]++;
  });
  return { weights, shared };
}

/**
 * Spectral clusters of a signed graph [N, N]: rows of the K leading eigenvectors of D^-½ W D^-½ (D the sums of absolute
 * weights), scaled to length 1, by k-means (Ng, Jordan and Weiss 2001; signed weights as in Kunegis et al. 2010).
 */
export function spectralClusters(weights: Float64Array, n: number, types: number, random: Random): Int32Array {
  const scale = Float64Array.from({ length: n }, (_, u) => {
    let sum = 0;
    for (let v = 0; v < n; v++) sum += Math.abs(weights[u * n + v]);
    return sum > 0 ? 1 / Math.sqrt(sum) : 0;
  });
  // Eigenvalues lie in [−1, 1]; plus 1, the leading ones are those of largest size too.
  const apply = (x: Float64Array) => {
    const y = x.slice();
    for (let u = 0; u < n; u++) {
      for (let v = 0; v < n; v++) {
        const w = weights[u * n + v] * scale[u] * scale[v];
        if (w !== 0) for (let c = 0; c < types; c++) y[u * types + c] += w * x[v * types + c];
      }
    }
    return y;
  };
  let vectors = Float64Array.from({ length: n * types }, () => random.normal());
  orthonormalise(vectors, n, types);
  for (let round = 0; round < 100; round++) {
    vectors = apply(vectors);
    orthonormalise(vectors, n, types);
  }
  for (let u = 0; u < n; u++) {
    const row = vectors.subarray(u * types, (u + 1) * types);
    const length = Math.sqrt(row.reduce((sum, x) => sum + x * x, 0));
    if (length > 0) for (let c = 0; c < types; c++) row[c] /= length;
  }
  return tightestClusters(vectors, n, types, types, random);
}
