import type { ItemTable } from './items.js';
import { cholesky } from './linalg.js';
import type { Population } from './population.js';

/** A direction in which voters differ, and what is liked at its two ends. */
export interface TasteAxis {
  /** Share of the spread of all rewards that it holds. */
  share: number;
  /** Names of the items that voters at the low and at the high end like most, against the others. */
  low: string[];
  high: string[];
}

export interface VoterMap {
  /** Where voters stand; what is between two of them is how much their rewards differ. */
  voters: { name: string; x: number; y: number }[];
  /** Voters in all, where not all are shown. */
  of: number;
  axes: TasteAxis[];
}

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
  const along = (place: Float64Array, axis: Float64Array) => place.reduce((sum, x, c) => sum + x * axis[c], 0);
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
  const round = (x: number) => Number(x.toPrecision(4));
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

/** At most `most` of 0 … n − 1, evenly spread. */
function every(n: number, most: number): number[] {
  const count = Math.min(n, most);
  return Array.from({ length: count }, (_, i) => Math.floor((i * n) / count));
}

/** The direction of most spread that is orthogonal to those given, by power iteration; its sign makes its largest part positive. */
function principal(places: Float64Array[], before: Float64Array[]): Float64Array {
  const k = places[0].length;
  let axis = Float64Array.from({ length: k }, (_, c) => Math.cos(c + 1));
  const tidy = () => {
    for (const other of before) {
      const inside = axis.reduce((sum, x, c) => sum + x * other[c], 0);
      axis = axis.map((x, c) => x - inside * other[c]);
    }
    const size = Math.sqrt(axis.reduce((sum, x) => sum + x * x, 0));
    if (size > 0) axis = axis.map((x) => x / size);
  };
  tidy();
  for (let round = 0; round < 60; round++) {
    const next = new Float64Array(k);
    for (const place of places) {
      const inside = place.reduce((sum, x, c) => sum + x * axis[c], 0);
      for (let c = 0; c < k; c++) next[c] += inside * place[c];
    }
    axis = next;
    tidy();
  }
  const largest = axis.reduce((top, x) => (Math.abs(x) > Math.abs(top) ? x : top), 0);
  return largest < 0 ? axis.map((x) => -x) : axis;
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

/** Of ten equal bins of confidence max(p, 1 − p): pairs, mean confidence, share that the reward orders right. */
export interface ReliabilityBin {
  rows: number;
  confidence: number;
  accuracy: number;
}

/** @param margins reward of the choice minus that of the other, of decided pairs */
export function reliability(margins: readonly number[]): ReliabilityBin[] {
  const bins = Array.from({ length: 10 }, () => ({ rows: 0, confidence: 0, accuracy: 0 }));
  for (const margin of margins) {
    const confidence = 1 / (1 + Math.exp(-Math.abs(margin)));
    const bin = bins[Math.min(9, Math.floor((confidence - 0.5) * 20))];
    bin.rows++;
    bin.confidence += confidence;
    bin.accuracy += margin > 0 ? 1 : 0;
  }
  return bins
    .filter((bin) => bin.rows > 0)
    .map(({ rows, confidence, accuracy }) => ({ rows, confidence: confidence / rows, accuracy: accuracy / rows }));
}
