import { PluralignError } from '../native/errors.js';
import { davidson, voteLoss } from './likelihood.js';
import { cholesky, choleskySolve } from './linalg.js';
import type { Votes } from './votes.js';

/** What is linear in the coordinates z [k] that are fitted: reward of item i = base[i] + points[i]·z. */
export interface LinearProblem {
  votes: Votes;
  /** Indices of the votes that count; default: all. */
  which?: Int32Array;
  /** [n, k] */
  points: Float64Array;
  k: number;
  /** [n]; absent: 0. */
  base?: Float64Array;
  /** Precision of the prior N(0, 1/l2) on each coordinate. */
  l2: number;
}

export interface LinearFit {
  z: Float64Array;
  /** −log posterior at z, up to a constant. */
  value: number;
  /** Lower Cholesky factor [k, k] of the Hessian at z: the precision of the Laplace posterior. */
  factor: Float64Array;
  steps: number;
}

/** Value, gradient [k] and Hessian [k, k] of minus the log-posterior at z. */
export function linearObjective(
  { votes, which, points, k, base, l2 }: LinearProblem,
  z: Float64Array,
  gradient: Float64Array,
  hessian?: Float64Array,
): number {
  let value = 0;
  hessian?.fill(0);
  for (let c = 0; c < k; c++) {
    gradient[c] = l2 * z[c];
    value += 0.5 * l2 * z[c] * z[c];
    if (hessian) hessian[c * k + c] = l2;
  }
  const count = which?.length ?? votes.m;
  const delta = new Float64Array(k);
  for (let a = 0; a < count; a++) {
    const v = which ? which[a] : a;
    const from = votes.offsets[v];
    const n = votes.offsets[v + 1] - from;
    const w = votes.weights[v];
    if (w === 0 || (votes.stages[v] === 0 && !votes.tie)) continue;
    if (n === 2) {
      // The pair alone, without a list: nearly every vote is one.
      const i = votes.items[from] * k;
      const j = votes.items[from + 1] * k;
      let x = -votes.margins[v];
      if (base) x += base[votes.items[from]] - base[votes.items[from + 1]];
      for (let c = 0; c < k; c++) {
        delta[c] = points[i + c] - points[j + c];
        x += delta[c] * z[c];
      }
      if (votes.tie) {
        const { loss, slope, curvature } = davidson(x, votes.tie, votes.stages[v] === 0);
        value += w * loss;
        for (let c = 0; c < k; c++) gradient[c] += w * slope * delta[c];
        if (hessian) rankOne(hessian, delta, k, w * curvature);
        continue;
      }
      const e = Math.exp(-Math.abs(x));
      value += w * ((x < 0 ? -x : 0) + Math.log1p(e));
      const p = x >= 0 ? e / (1 + e) : 1 / (1 + e);
      for (let c = 0; c < k; c++) gradient[c] -= w * p * delta[c];
      if (hessian) rankOne(hessian, delta, k, w * p * (1 - p));
      continue;
    }
    const rewards = new Float64Array(n);
    const g = new Float64Array(n);
    for (let s = 0; s < n; s++) {
      const item = votes.items[from + s];
      let r = base ? base[item] : 0;
      for (let c = 0; c < k; c++) r += points[item * k + c] * z[c];
      rewards[s] = r;
    }
    value += w * voteLoss(rewards, votes.stages[v], votes.margins[v], g);
    for (let s = 0; s < n; s++) {
      const at = votes.items[from + s] * k;
      for (let c = 0; c < k; c++) gradient[c] += w * g[s] * points[at + c];
    }
    if (hessian) rankingHessian(hessian, votes, v, rewards, points, k, w);
  }
  return value;
}

function rankOne(hessian: Float64Array, delta: Float64Array, k: number, factor: number): void {
  for (let a = 0; a < k; a++) {
    const f = factor * delta[a];
    for (let b = 0; b <= a; b++) hessian[a * k + b] += f * delta[b];
  }
}

/** Each stage adds the covariance of the points under its choice probabilities. */
function rankingHessian(
  hessian: Float64Array,
  votes: Votes,
  v: number,
  rewards: Float64Array,
  points: Float64Array,
  k: number,
  weight: number,
): void {
  const from = votes.offsets[v];
  const n = rewards.length;
  const mean = new Float64Array(k);
  const delta = new Float64Array(k);
  for (let s = 0; s < votes.stages[v]; s++) {
    const top = rewards.subarray(s).reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    let sum = 0;
    for (let j = s; j < n; j++) sum += Math.exp(rewards[j] - top);
    mean.fill(0);
    for (let j = s; j < n; j++) {
      const p = Math.exp(rewards[j] - top) / sum;
      const at = votes.items[from + j] * k;
      for (let c = 0; c < k; c++) mean[c] += p * points[at + c];
    }
    for (let j = s; j < n; j++) {
      const p = Math.exp(rewards[j] - top) / sum;
      const at = votes.items[from + j] * k;
      for (let c = 0; c < k; c++) delta[c] = points[at + c] - mean[c];
      rankOne(hessian, delta, k, weight * p);
    }
  }
}

/**
 * The exact posterior mode of coordinates that rewards are linear in: Newton's method with a halved step where a whole
 * one does not descend. Convex; unique for l2 > 0.
 *
 * @throws PluralignError `NON_FINITE` where the votes leave a direction undetermined and l2 is 0
 */
export function fitLinear(problem: LinearProblem, start?: Float64Array, tolerance = 1e-9): LinearFit {
  const { k } = problem;
  const z = start ? Float64Array.from(start) : new Float64Array(k);
  const gradient = new Float64Array(k);
  const hessian = new Float64Array(k * k);
  const step = new Float64Array(k);
  const trial = new Float64Array(k);
  let value = linearObjective(problem, z, gradient, hessian);
  let steps = 0;
  for (; ; steps++) {
    if (!cholesky(hessian, k)) {
      throw new PluralignError('NON_FINITE', 'the votes leave some direction open; give features.l2 above 0');
    }
    step.set(gradient);
    choleskySolve(hessian, k, step);
    let decrement = 0;
    for (let c = 0; c < k; c++) decrement += step[c] * gradient[c];
    // Half the decrement is how far the value can still fall, to second order.
    if (decrement <= tolerance * (1 + Math.abs(value)) || steps >= 100) return { z, value, factor: hessian, steps };
    let length = 1;
    let next = Number.POSITIVE_INFINITY;
    for (let attempt = 0; attempt < 40; attempt++, length /= 2) {
      for (let c = 0; c < k; c++) trial[c] = z[c] - length * step[c];
      next = linearObjective(problem, trial, gradient);
      if (next <= value - 1e-4 * length * decrement) break;
    }
    if (!(next < value)) return { z, value, factor: hessian, steps };
    z.set(trial);
    value = linearObjective(problem, z, gradient, hessian);
  }
}
