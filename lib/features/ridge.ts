import { PluralignError } from '../native/errors.js';
import type { ItemTable } from './items.js';
import { lbfgs } from './lbfgs.js';
import { orthonormalise, project } from './linalg.js';
import { fitLinear, linearObjective } from './newton.js';
import type { Votes } from './votes.js';

export interface RidgeOptions {
  /** Precision of the prior N(0, 1/l2) on each weight. */
  l2: number;
  /** Indices of the votes that count; default: all. */
  which?: Int32Array;
  signal?: AbortSignal;
}

export interface RidgeFit {
  /** [d] */
  w: Float64Array;
  value: number;
  steps: number;
  converged: boolean;
}

/** Unknowns up to which Newton's cubic cost is worth its few steps. */
const newtonSize = 160;

/**
 * One linear reward from votes: the exact mode of the log-posterior. Where there are fewer votes than features, it is
 * found in the span of the votes' differences, outside which the prior holds the weights at zero.
 */
export function fitRidge(table: ItemTable, votes: Votes, { l2, which, signal }: RidgeOptions): RidgeFit {
  if (signal?.aborted) throw new PluralignError('ABORTED', 'stopped on request');
  const { d } = table;
  const indices = which ?? Int32Array.from({ length: votes.m }, (_, v) => v);
  let differences = 0;
  for (const v of indices) differences += Math.max(0, votes.offsets[v + 1] - votes.offsets[v] - 1);
  if (differences === 0) return { w: new Float64Array(d), value: 0, steps: 0, converged: true };
  const local = localItems(table, votes, indices);
  if (differences < Math.min(d, newtonSize) && l2 > 0) {
    const basis = differenceBasis(local, differences, d);
    const points = project(local.features, local.n, d, basis, differences);
    const fit = fitLinear({ votes: local.votes, points, k: differences, l2 }, undefined, 1e-14);
    return { w: project(basis, d, differences, fit.z, 1), value: fit.value, steps: fit.steps, converged: true };
  }
  const problem = { votes: local.votes, points: local.features, k: d, l2: Math.max(l2, 1e-9) };
  if (d <= newtonSize) {
    const fit = fitLinear(problem, undefined, 1e-14);
    return { w: fit.z, value: fit.value, steps: fit.steps, converged: true };
  }
  const w = new Float64Array(d);
  const { value, steps, converged } = lbfgs((x, g) => linearObjective(problem, x, g), w, { signal, maxSteps: 1000 });
  return { w, value, steps, converged };
}

interface LocalItems {
  features: Float64Array;
  n: number;
  votes: Votes;
}

/** The chosen votes over a table of only the items that they name. */
function localItems(table: ItemTable, votes: Votes, indices: Int32Array): LocalItems {
  const { d } = table;
  const rows = new Map<number, number>();
  const offsets = new Int32Array(indices.length + 1);
  for (const [i, v] of indices.entries()) {
    for (let t = votes.offsets[v]; t < votes.offsets[v + 1]; t++) {
      if (!rows.has(votes.items[t])) rows.set(votes.items[t], rows.size);
    }
    offsets[i + 1] = offsets[i] + votes.offsets[v + 1] - votes.offsets[v];
  }
  const items = new Int32Array(offsets[indices.length]);
  for (const [i, v] of indices.entries()) {
    for (let s = 0; s < offsets[i + 1] - offsets[i]; s++) {
      items[offsets[i] + s] = rows.get(votes.items[votes.offsets[v] + s]) as number;
    }
  }
  const features = new Float64Array(rows.size * d);
  for (const [item, row] of rows) features.set(table.features.subarray(item * d, (item + 1) * d), row * d);
  return {
    features,
    n: rows.size,
    votes: {
      annotators: [],
      annotator: new Int32Array(indices.length),
      offsets,
      items,
      stages: Int32Array.from(indices, (v) => votes.stages[v]),
      weights: Float64Array.from(indices, (v) => votes.weights[v]),
      margins: Float64Array.from(indices, (v) => votes.margins[v]),
      rows: Int32Array.from(indices, (v) => votes.rows[v]),
      m: indices.length,
    },
  };
}

/** Orthonormal columns [d, p] whose span holds every difference of items within a vote. */
function differenceBasis({ features, votes }: LocalItems, p: number, d: number): Float64Array {
  const basis = new Float64Array(d * p);
  let column = 0;
  for (let v = 0; v < votes.m; v++) {
    const first = votes.items[votes.offsets[v]] * d;
    for (let t = votes.offsets[v] + 1; t < votes.offsets[v + 1]; t++, column++) {
      const other = votes.items[t] * d;
      for (let j = 0; j < d; j++) basis[j * p + column] = features[first + j] - features[other + j];
    }
  }
  orthonormalise(basis, d, p);
  return basis;
}
