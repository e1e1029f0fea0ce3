import { PluralignError } from '../native/errors.js';

/** A value for each objective; larger is better. */
export type Point = readonly number[];

/** All weights of `objectives` that are multiples of 1/steps and add up to 1, the first objective's falling. */
export function simplexGrid(objectives: number, steps: number): number[][] {
  const rows = (left: number, places: number): number[][] =>
    places === 1
      ? [[left]]
      : Array.from({ length: left + 1 }, (_, i) => left - i).flatMap((first) =>
          rows(left - first, places - 1).map((rest) => [first, ...rest]),
        );
  return rows(steps, objectives).map((row) => row.map((count) => count / steps));
}

/** a is at least as good everywhere and better somewhere. */
export function dominates(a: Point, b: Point): boolean {
  return a.every((value, k) => value >= b[k]) && a.some((value, k) => value > b[k]);
}

/** Positions of the points that no other dominates. Of equal points all stay. */
export function nonDominated(points: readonly Point[]): number[] {
  return points.flatMap((p, i) => (points.some((q) => dominates(q, p)) ? [] : [i]));
}

/**
 * Volume of what the points dominate above `reference`, exactly: slices along the last objective, each with the volume in
 * the others (Zitzler & Thiele 1999). Points not above the reference in every objective add nothing. Throws `BAD_ARGUMENT`.
 */
export function hypervolume(points: readonly Point[], reference: Point): number {
  for (const p of points) {
    if (p.length !== reference.length || !p.every(Number.isFinite))
      throw new PluralignError(
        'BAD_ARGUMENT',
        `hypervolume: found the point [${p.join(', ')}], expected ${reference.length} finite numbers`,
      );
  }
  return volume(
    points.filter((p) => p.every((value, k) => value > reference[k])),
    reference,
    reference.length,
  );
}

function volume(points: readonly Point[], reference: Point, objectives: number): number {
  if (points.length === 0) return 0;
  const last = objectives - 1;
  if (last === 0) return Math.max(...points.map((p) => p[0])) - reference[0];
  const sorted = [...points].sort((a, b) => b[last] - a[last]);
  let sum = 0;
  sorted.forEach((p, i) => {
    const below = i + 1 < sorted.length ? sorted[i + 1][last] : reference[last];
    if (p[last] > below) sum += (p[last] - below) * volume(sorted.slice(0, i + 1), reference, last);
  });
  return sum;
}

/** Where mixing the experts' outcomes, not their parameters, would land: Σ w_i point_i. */
export function chord(experts: readonly Point[], weights: readonly number[]): number[] {
  return experts[0].map((_, k) => experts.reduce((sum, p, i) => sum + weights[i] * p[k], 0));
}

/** How far a point lies above the chord for somebody with these weights: Σ_k w_k (point_k − chord_k). */
export function chordMargin(point: Point, experts: readonly Point[], weights: readonly number[]): number {
  const line = chord(experts, weights);
  return point.reduce((sum, value, k) => sum + weights[k] * (value - line[k]), 0);
}

/** Ranks from 1; equal values share the mean of theirs. */
function ranks(values: readonly number[]): number[] {
  const order = values.map((_, i) => i).sort((a, b) => values[a] - values[b]);
  const out = new Array<number>(values.length);
  for (let i = 0; i < order.length; ) {
    let end = i;
    while (end < order.length && values[order[end]] === values[order[i]]) end++;
    for (let j = i; j < end; j++) out[order[j]] = (i + 1 + end) / 2;
    i = end;
  }
  return out;
}

/** Spearman's correlation; 0 where one side is the same throughout. */
export function rankCorrelation(a: readonly number[], b: readonly number[]): number {
  const [x, y] = [ranks(a), ranks(b)];
  const mean = (x.length + 1) / 2;
  let [xy, xx, yy] = [0, 0, 0];
  for (let i = 0; i < x.length; i++) {
    xy += (x[i] - mean) * (y[i] - mean);
    xx += (x[i] - mean) ** 2;
    yy += (y[i] - mean) ** 2;
  }
  return xx > 0 && yy > 0 ? xy / Math.sqrt(xx * yy) : 0;
}

/** Whether weights steer: the mean over objectives of the rank correlation of a weight and its objective. */
export function controllability(weights: readonly (readonly number[])[], points: readonly Point[]): number {
  const objectives = points[0].length;
  let sum = 0;
  for (let k = 0; k < objectives; k++) {
    sum += rankCorrelation(
      weights.map((w) => w[k]),
      points.map((p) => p[k]),
    );
  }
  return sum / objectives;
}
