import { voteLoss } from './likelihood.js';
import { bilinearLossNative, isLarge } from './native.js';
import type { Votes } from './votes.js';

/**
 * What every model here comes down to: the reward of item i for annotator u is base[i] + points[i]·c_u. Items are
 * projected once ([n, k]), so that a vote costs k multiplications however many features there are.
 */
export interface ItemSide {
  /** [n] the part that all annotators share. */
  base: Float64Array;
  /** [n, k] */
  points: Float64Array;
}

export interface BilinearGradient {
  /** [n] */
  base: Float64Array;
  /** [n, k] */
  points: Float64Array;
  /** [N, k] */
  users: Float64Array;
}

/**
 * Minus the log-likelihood of all votes (weighted sum; Bradley–Terry, Plackett–Luce), given items and users [N, k]; the
 * gradient is added to `gradient`. A vote of nobody (annotator −1) sees the base alone.
 */
export function bilinearLoss(
  votes: Votes,
  { base, points }: ItemSide,
  users: Float64Array,
  k: number,
  gradient?: BilinearGradient,
): number {
  if (isLarge(votes.items.length * (k + 1))) return bilinearLossNative(votes, { base, points }, users, k, gradient);
  const { offsets, items, annotator, weights, margins, stages } = votes;
  let loss = 0;
  for (let v = 0; v < votes.m; v++) {
    const from = offsets[v];
    const n = offsets[v + 1] - from;
    const u = annotator[v] < 0 ? -1 : annotator[v] * k;
    if (n !== 2 || stages[v] !== 1 || votes.tie) {
      loss += rankingLoss(votes, v, base, points, users, k, gradient);
      continue;
    }
    const a = items[from];
    const b = items[from + 1];
    const ak = a * k;
    const bk = b * k;
    let x = base[a] - base[b] - margins[v];
    if (u >= 0) for (let c = 0; c < k; c++) x += (points[ak + c] - points[bk + c]) * users[u + c];
    const e = Math.exp(-Math.abs(x));
    loss += weights[v] * ((x < 0 ? -x : 0) + Math.log1p(e));
    if (!gradient) continue;
    const g = -weights[v] * (x >= 0 ? e / (1 + e) : 1 / (1 + e));
    gradient.base[a] += g;
    gradient.base[b] -= g;
    if (u < 0) continue;
    for (let c = 0; c < k; c++) {
      const gz = g * users[u + c];
      gradient.users[u + c] += g * (points[ak + c] - points[bk + c]);
      gradient.points[ak + c] += gz;
      gradient.points[bk + c] -= gz;
    }
  }
  return loss;
}

function rankingLoss(
  votes: Votes,
  v: number,
  base: Float64Array,
  points: Float64Array,
  users: Float64Array,
  k: number,
  gradient: BilinearGradient | undefined,
): number {
  const from = votes.offsets[v];
  const n = votes.offsets[v + 1] - from;
  const u = votes.annotator[v] < 0 ? -1 : votes.annotator[v] * k;
  const rewards = new Float64Array(n);
  const g = new Float64Array(n);
  for (let s = 0; s < n; s++) {
    const item = votes.items[from + s];
    rewards[s] = base[item];
    if (u >= 0) for (let c = 0; c < k; c++) rewards[s] += points[item * k + c] * users[u + c];
  }
  const loss = votes.weights[v] * voteLoss(rewards, votes.stages[v], votes.margins[v], g, votes.tie);
  if (!gradient) return loss;
  for (let s = 0; s < n; s++) {
    const item = votes.items[from + s];
    const gs = votes.weights[v] * g[s];
    gradient.base[item] += gs;
    if (u < 0) continue;
    for (let c = 0; c < k; c++) {
      gradient.users[u + c] += gs * points[item * k + c];
      gradient.points[item * k + c] += gs * users[u + c];
    }
  }
  return loss;
}
