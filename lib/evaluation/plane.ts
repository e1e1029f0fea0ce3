import { mix32 } from '../base/random.js';

/** A direction in which voters differ, and what is liked at its two ends. */
export interface TasteAxis {
  /** Share of the spread of all rewards that it holds. */
  share: number;
  /** Names of the items that voters at the low and at the high end like most against the others, or what they prefer. */
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

/** At most `most` of 0 … n − 1, evenly spread. */
export function every(n: number, most: number): number[] {
  const count = Math.min(n, most);
  return Array.from({ length: count }, (_, i) => Math.floor((i * n) / count));
}

/** The direction of most spread that is orthogonal to those given, by power iteration; its sign makes its largest part positive. */
export function principal(places: Float64Array[], before: Float64Array[]): Float64Array {
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
      const inside = along(place, axis);
      for (let c = 0; c < k; c++) next[c] += inside * place[c];
    }
    axis = next;
    tidy();
  }
  const largest = axis.reduce((top, x) => (Math.abs(x) > Math.abs(top) ? x : top), 0);
  return largest < 0 ? axis.map((x) => -x) : axis;
}

/** How far a place lies along an axis. */
export function along(place: Float64Array, axis: Float64Array): number {
  let sum = 0;
  for (let c = 0; c < place.length; c++) sum += place[c] * axis[c];
  return sum;
}

/**
 * Places of at most `most` numbers between which distances are about as before, within 1 / √most of them: every number is
 * added to or taken from one of the new ones, drawn by its index (a count sketch, Charikar et al. 2002).
 */
export function sketch(place: ArrayLike<number>, most: number): Float64Array {
  if (place.length <= most) return Float64Array.from(place);
  const out = new Float64Array(most);
  for (let c = 0; c < place.length; c++) {
    const draw = mix32(c + 1);
    out[(draw >>> 1) % most] += draw & 1 ? place[c] : -place[c];
  }
  return out;
}

/** Four digits: enough for a picture. */
export const round = (x: number) => Number(x.toPrecision(4));
