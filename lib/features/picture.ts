import { along, every, principal, round, type TasteAxis, type VoterMap } from '../evaluation/plane.js';
import type { ItemTable } from './items.js';
import { cholesky } from './linalg.js';
import type { Population } from './population.js';

const mostVoters = 2000;
const mostItems = 1000;
const named = 5;

/**
 * Voters on a plane: with A = Lᵀ c_u, L Lᵀ the covariance of the items' points, ‖A_u − A_v‖² is the mean squared difference
 * of two voters' rewards; the two principal axes of A hold as much of that as two can. Null where voters do not differ.
 */
export function voterMap(population: Population, table: ItemTable): VoterMap | null {
  const { k } = population.model;
  const count = population.annotators.length;
  if (k === 0 || count < 3) return null;
  const shown = every(count, mostVoters);
  const items = every(table.n, mostItems);
  const { points } = population.model.items(table, population.parameters.shared);
  const middle = new Float64Array(k);
  for (const i of items) for (let c = 0; c < k; c++) middle[c] += points[i * k + c] / items.length;
  const covariance = new Float64Array(k * k);
  for (const i of items) {
    for (let a = 0; a < k; a++) {
      const x = points[i * k + a] - middle[a];
      for (let b = 0; b < k; b++) covariance[a * k + b] += (x * (points[i * k + b] - middle[b])) / items.length;
    }
  }
  let trace = 0;
  for (let c = 0; c < k; c++) trace += covariance[c * k + c];
  if (!(trace > 0)) return null;
  // A little on the diagonal: points may span fewer directions than there are columns.
  for (let c = 0; c < k; c++) covariance[c * k + c] += 1e-9 * trace;
  if (!cholesky(covariance, k)) return null;
  const l = covariance;
  const places = shown.map((u) => {
    const c = population.coordinates(u);
    return Float64Array.from({ length: k }, (_, b) => {
      let sum = 0;
      for (let a = b; a < k; a++) sum += l[a * k + b] * c[a];
      return sum;
    });
  });
  const centre = new Float64Array(k);
  for (const place of places) for (let c = 0; c < k; c++) centre[c] += place[c] / places.length;
  for (const place of places) for (let c = 0; c < k; c++) place[c] -= centre[c];
  const spread = places.reduce((sum, place) => sum + place.reduce((s, x) => s + x * x, 0), 0);
  if (!(spread > 1e-18)) return null;
  const first = principal(places, []);
  const second = k > 1 ? principal(places, [first]) : new Float64Array(k);
  const axes = (k > 1 ? [first, second] : [first]).map((axis): TasteAxis => {
    // Where a voter stands by a along the axis, the reward of item i is moved by a · p_i · L⁻ᵀ axis.
    const z = backSolve(l, axis, k);
    const scores = items
      .map((i) => ({ i, score: z.reduce((sum, x, c) => sum + x * points[i * k + c], 0) }))
      .sort((a, b) => a.score - b.score);
    const names = (list: { i: number }[]) => list.map(({ i }) => table.ids[i]);
    return {
      share: places.reduce((sum, place) => sum + along(place, axis) ** 2, 0) / spread,
      low: names(scores.slice(0, named)),
      high: names(scores.slice(-named).reverse()),
    };
  });
  return {
    voters: shown.map((u, i) => ({
      name: population.annotators[u],
      x: round(along(places[i], first)),
      y: round(along(places[i], second)),
    })),
    of: count,
    axes,
  };
}

/** Solves Lᵀ x = b. */
function backSolve(l: Float64Array, b: Float64Array, k: number): Float64Array {
  const x = b.slice();
  for (let i = k - 1; i >= 0; i--) {
    for (let p = i + 1; p < k; p++) x[i] -= l[p * k + i] * x[p];
    x[i] /= l[i * k + i];
  }
  return x;
}
