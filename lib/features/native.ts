import { availableParallelism } from 'node:os';
import { addon } from '../native/loader.js';
import { type Ballots, ballotsOf } from './ballots.js';
import type { BilinearGradient, ItemSide } from './bilinear.js';
import type { Votes } from './votes.js';

/** Multiplications from which the addon is quicker than plain loops, whatever it costs to hand the arrays over. */
const worthIt = 100_000;

let threads = Math.min(availableParallelism(), 64);

/** Threads of the fits that follow. Results do not depend on them. */
export function useThreads(count: number): void {
  threads = count;
}

export const fitThreads = () => threads;

export function isLarge(multiplications: number): boolean {
  return multiplications >= worthIt;
}

/** Elements from one row to the next of k columns: whole cache lines. */
export function strideOf(k: number, bytes: 4 | 8): number {
  const line = 64 / bytes;
  return Math.ceil(Math.max(k, 1) / line) * line;
}

/** X [n, d] · V [d, k] → out [n, k] by the addon, float64. */
export function projectNative(x: Float32Array, n: number, d: number, v: Float64Array, k: number, out: Float64Array) {
  const stride = strideOf(k, 8);
  const points = new Float64Array(n * stride);
  addon().bilinear.project({ x: x.subarray(0, n * d), d, k, v: transpose(v, d, k), points, stride, threads });
  unpad(points, stride, n, k, out);
}

/** Xᵀ [d, n] · G [n, k], added to out [d, k]. */
export function projectBackNative(
  x: Float32Array,
  n: number,
  d: number,
  g: Float64Array,
  k: number,
  out: Float64Array,
): void {
  const stride = strideOf(k, 8);
  const points = pad(g, n, k, stride);
  const sums = new Float64Array(k * d);
  addon().bilinear.projectBack({ x: x.subarray(0, n * d), d, k, v: sums, points, stride, threads });
  for (let c = 0; c < k; c++) for (let j = 0; j < d; j++) out[j * k + c] += sums[c * d + j];
}

/** `bilinearLoss` by the addon: the base is a column more, whose coordinate is 1 for everyone. */
export function bilinearLossNative(
  votes: Votes,
  side: ItemSide,
  users: Float64Array,
  k: number,
  gradient?: BilinearGradient,
): number {
  const ballots = ballotsOf(votes);
  const stride = strideOf(k + 1, 8);
  const points = pointsWithBase(side, k, stride);
  const everyone = usersWithBase(users, ballots, k, stride);
  const n = side.base.length;
  const dPoints = gradient && new Float64Array(n * stride);
  const dUsers = gradient && new Float64Array(ballots.voters * stride);
  const loss = addon().bilinear.loss({ ballots, points, users: everyone, stride, threads, dPoints, dUsers });
  if (!gradient || !dPoints || !dUsers) return loss;
  for (let i = 0; i < n; i++) {
    for (let c = 0; c < k; c++) gradient.points[i * k + c] += dPoints[i * stride + c];
    gradient.base[i] += dPoints[i * stride + k];
  }
  const known = votes.annotators.length;
  for (let u = 0; u < known; u++) {
    for (let c = 0; c < k; c++) gradient.users[u * k + c] += dUsers[u * stride + c];
  }
  return loss;
}

/**
 * Everyone's coordinates z [N, k] at the mode of their posteriors, from where they stand, in place. With `factors`
 * [N, k, k]: the lower Cholesky factors of the Hessians, the precisions of the Laplace posteriors.
 */
export function newtonNative(
  votes: Votes,
  side: ItemSide,
  z: Float64Array,
  k: number,
  l2: number,
  tolerance: number,
  factors?: Float64Array,
): number {
  const ballots = ballotsOf(votes);
  const stride = strideOf(k + 1, 8);
  const users = usersWithBase(z, ballots, k, stride);
  const known = votes.annotators.length;
  // Nobody has no coordinates to fit.
  const named = { ...ballots, voterStart: ballots.voterStart.subarray(0, known + 1), ...cut(ballots) };
  const own = users.subarray(0, known * stride);
  const points = pointsWithBase(side, k, stride);
  const call = { ballots: named, points, users: own, stride, free: k, l2, tolerance, threads };
  const steps = addon().bilinear.newton(factors ? { ...call, factors } : call);
  for (let u = 0; u < known; u++) for (let c = 0; c < k; c++) z[u * k + c] = own[u * stride + c];
  return steps;
}

/** The arrays of the votes that have a name. */
function cut(ballots: Ballots): Partial<Ballots> {
  const count = ballots.votes - ballots.nameless;
  const { voteStart, places, stages, weights, margins } = ballots;
  return {
    voteStart: voteStart?.subarray(0, count + 1),
    places: places.subarray(0, voteStart ? voteStart[count] : 2 * count),
    stages: stages?.subarray(0, count),
    weights: weights?.subarray(0, count),
    margins: margins?.subarray(0, count),
  };
}

function pointsWithBase({ base, points }: ItemSide, k: number, stride: number): Float64Array {
  const out = pad(points, base.length, k, stride);
  for (let i = 0; i < base.length; i++) out[i * stride + k] = base[i];
  return out;
}

/** Coordinates [voters, stride] with 1 behind those that are fitted; nobody has 0 there. */
function usersWithBase(users: Float64Array, { voters }: Ballots, k: number, stride: number): Float64Array {
  const out = pad(users, k > 0 ? users.length / k : 0, k, stride, voters);
  for (let u = 0; u < voters; u++) out[u * stride + k] = 1;
  return out;
}

function pad(rows: Float64Array, n: number, k: number, stride: number, total = n): Float64Array {
  const out = new Float64Array(total * stride);
  for (let i = 0; i < n; i++) for (let c = 0; c < k; c++) out[i * stride + c] = rows[i * k + c];
  return out;
}

function unpad(rows: Float64Array, stride: number, n: number, k: number, out: Float64Array): void {
  for (let i = 0; i < n; i++) for (let c = 0; c < k; c++) out[i * k + c] = rows[i * stride + c];
}

/** [a, b] → [b, a] */
export function transpose(x: Float64Array, a: number, b: number): Float64Array {
  const out = new Float64Array(a * b);
  for (let i = 0; i < a; i++) for (let j = 0; j < b; j++) out[j * a + i] = x[i * b + j];
  return out;
}
