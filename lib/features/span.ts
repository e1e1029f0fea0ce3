import { orthonormalise, project } from './linalg.js';
import { fitLinear, type LinearFit, type LinearProblem } from './newton.js';
import type { Votes } from './votes.js';

/** Directions that votes can tell apart, at most: a vote of n places has n − 1. */
export function differencesOf(votes: Votes, which?: Int32Array): number {
  const count = which?.length ?? votes.m;
  let differences = 0;
  for (let a = 0; a < count; a++) {
    const v = which ? which[a] : a;
    differences += Math.max(0, votes.offsets[v + 1] - votes.offsets[v] - 1);
  }
  return differences;
}

export interface SpanFit extends Omit<LinearFit, 'factor'> {
  /** Orthonormal columns [k, p]; outside their span the posterior is the prior. Absent: all k directions. */
  basis?: Float64Array;
  /** Lower Cholesky factor of the posterior's precision: [p, p] in the basis, or [k, k]. */
  factor: Float64Array;
}

/**
 * `fitLinear` where there may be fewer votes than coordinates: the mode then lies in the span of the votes' differences,
 * outside which the prior (l2 above 0) holds it at zero.
 */
export function fitInSpan(problem: LinearProblem, tolerance = 1e-14): SpanFit {
  const { votes, which, points, k, l2 } = problem;
  const p = differencesOf(votes, which);
  if (p >= k || l2 <= 0) return fitLinear(problem, undefined, tolerance);
  const basis = differenceBasis(points, votes, which, p, k);
  const projected = project(points, points.length / k, k, basis, p);
  const { z, ...fit } = fitLinear({ ...problem, points: projected, k: p }, undefined, tolerance);
  return { ...fit, basis, z: project(basis, k, p, z, 1) };
}

/** Orthonormal columns [k, p] whose span holds every difference of points within a vote. */
function differenceBasis(
  points: Float64Array,
  votes: Votes,
  which: Int32Array | undefined,
  p: number,
  k: number,
): Float64Array {
  const basis = new Float64Array(k * p);
  const count = which?.length ?? votes.m;
  let column = 0;
  for (let a = 0; a < count; a++) {
    const v = which ? which[a] : a;
    const first = votes.items[votes.offsets[v]] * k;
    for (let t = votes.offsets[v] + 1; t < votes.offsets[v + 1]; t++, column++) {
      const other = votes.items[t] * k;
      for (let j = 0; j < k; j++) basis[j * p + column] = points[first + j] - points[other + j];
    }
  }
  orthonormalise(basis, k, p);
  return basis;
}
