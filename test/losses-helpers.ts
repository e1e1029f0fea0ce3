import { expect } from 'vitest';
import type { PairScores } from '../lib/losses/index.js';

export function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

export const fill = (n: number, f: (i: number) => number): Float64Array =>
  Float64Array.from({ length: n }, (_, i) => f(i));

export function pairs(n: number, seed: number, weighted = false): PairScores {
  const u = random(seed);
  const chosenTokens = fill(n, () => 1 + Math.floor(u() * 9));
  const rejectedTokens = fill(n, () => 1 + Math.floor(u() * 9));
  const chosen = chosenTokens.map((t) => -t * (0.3 + 2 * u()));
  const rejected = rejectedTokens.map((t) => -t * (0.3 + 2 * u()));
  const near = (x: number): number => x + 6 * (u() - 0.5);
  const scores: PairScores = {
    chosen,
    rejected,
    refChosen: chosen.map(near),
    refRejected: rejected.map(near),
    chosenTokens,
    rejectedTokens,
  };
  if (weighted) scores.weights = fill(n, (i) => (i === 2 ? 0 : 0.2 + 3 * u()));
  return scores;
}

/** Central differences of `loss` with respect to `x`, which is changed in place. */
export function differences(x: Float64Array, loss: () => number, h = 1e-4): Float64Array {
  return x.map((value, i) => {
    x[i] = value + h;
    const up = loss();
    x[i] = value - h;
    const down = loss();
    x[i] = value;
    return (up - down) / (2 * h);
  });
}

/** Relative to the largest element, and absolutely where all are tiny. */
export function close(actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance = 1e-6): void {
  expect(actual.length).toBe(expected.length);
  const scale = Math.max(1e-2, ...Array.from(expected, Math.abs));
  for (let i = 0; i < expected.length; i++)
    expect(Math.abs(actual[i] - expected[i]) / scale, `element ${i}: ${actual[i]} against ${expected[i]}`).toBeLessThan(
      tolerance,
    );
}

export const sizes = [1, 2, 3, 7, 8];

// Textbook arithmetic, for formulas written once more in the tests.
export const sigma = (x: number): number => 1 / (1 + Math.exp(-x));
export const L = (x: number, e: number): number => -(1 - e) * Math.log(sigma(x)) - (e ? e * Math.log(sigma(-x)) : 0);
