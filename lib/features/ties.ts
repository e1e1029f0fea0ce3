import { type TieModel, tieLoss } from '../losses/ties.js';
import type { Votes } from './votes.js';

/** A likelihood that has a place for ties, and how common they are (lib/losses/ties.ts). */
export interface Ties {
  type: TieModel;
  nu: number;
}

/** Whether vote v says that its two items are alike. */
export function isTie(votes: Votes, v: number): boolean {
  return votes.stages[v] === 0 && votes.offsets[v + 1] - votes.offsets[v] === 2;
}

/**
 * Votes whose ties count, for code that knows Bradley–Terry with margins and Davidson's ν. Under Rao and Kupper's model a
 * choice is one with the margin log ν, and a tie is two opposite choices, each with that margin, up to a constant.
 */
export function withTies(votes: Votes, { type, nu }: Ties): Votes {
  if (type === 'davidson') return { ...votes, tie: nu };
  const margin = Math.log(nu);
  const rows: { v: number; flipped: boolean }[] = [];
  for (let v = 0; v < votes.m; v++) {
    rows.push({ v, flipped: false });
    if (isTie(votes, v)) rows.push({ v, flipped: true });
  }
  const offsets = new Int32Array(rows.length + 1);
  for (const [i, { v }] of rows.entries()) offsets[i + 1] = offsets[i] + votes.offsets[v + 1] - votes.offsets[v];
  const items = new Int32Array(offsets[rows.length]);
  for (const [i, { v, flipped }] of rows.entries()) {
    const places = votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]);
    items.set(flipped ? [places[1], places[0]] : places, offsets[i]);
  }
  const pair = (v: number) => votes.offsets[v + 1] - votes.offsets[v] === 2;
  return {
    ...votes,
    annotator: Int32Array.from(rows, ({ v }) => votes.annotator[v]),
    offsets,
    items,
    stages: Int32Array.from(rows, ({ v }) => (isTie(votes, v) ? 1 : votes.stages[v])),
    weights: Float64Array.from(rows, ({ v }) => votes.weights[v]),
    margins: Float64Array.from(rows, ({ v }) => votes.margins[v] + (pair(v) ? margin : 0)),
    rows: Int32Array.from(rows, ({ v }) => votes.rows[v]),
    m: rows.length,
  };
}

/** The ν under which pairs with these reward differences are likeliest, by bisection on the slope in log ν. */
export function likeliestNu(
  type: TieModel,
  differences: Float64Array,
  tied: Uint8Array,
  weights: Float64Array,
): number {
  const slope = (nu: number) => tieLoss({ differences, tied, weights }, { type, nu }).dLogNu;
  let [low, high] = type === 'rao_kupper' ? [1e-4, 8] : [-10, 10];
  for (let round = 0; round < 50; round++) {
    const middle = (low + high) / 2;
    if (slope(Math.exp(middle)) < 0) low = middle;
    else high = middle;
  }
  return Math.exp((low + high) / 2);
}
