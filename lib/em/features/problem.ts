import type { ItemTable } from '../../features/items.js';
import type { Votes } from '../../features/votes.js';

/** Votes over items whose rewards are linear: r_k(i) = x_i · β_k. */
export interface MixtureProblem {
  votes: Votes;
  /** [n, d] features with the mean of each column taken off, which no vote can tell; null: each item has its own reward, d = n. */
  features: Float64Array | null;
  n: number;
  d: number;
  /** Directions of β that votes can tell apart: the rank of `features`, n − 1 for plain items. */
  rank: number;
}

/** `table` null: plain items, `n` of them. */
export function mixtureProblem(votes: Votes, table: Pick<ItemTable, 'features' | 'n' | 'd'> | number): MixtureProblem {
  if (typeof table === 'number') return { votes, features: null, n: table, d: table, rank: Math.max(0, table - 1) };
  const { n, d } = table;
  const features = centred(table.features, n, d);
  return { votes, features, n, d, rank: rankOf(features, n, d) };
}

/** The same items and features under other votes. */
export function withVotes(problem: MixtureProblem, votes: Votes): MixtureProblem {
  return { ...problem, votes };
}

function centred(features: ArrayLike<number>, n: number, d: number): Float64Array {
  const out = Float64Array.from(features);
  for (let j = 0; j < d; j++) {
    let mean = 0;
    for (let i = 0; i < n; i++) mean += out[i * d + j] / n;
    for (let i = 0; i < n; i++) out[i * d + j] -= mean;
  }
  return out;
}

/** Standard deviation of each column, [d]. */
export function spreads({ features, n, d }: MixtureProblem): Float64Array {
  const out = new Float64Array(d);
  if (!features) return out.fill(Math.sqrt((1 / n) * (1 - 1 / n)));
  for (let i = 0; i < n; i++) for (let j = 0; j < d; j++) out[j] += features[i * d + j] ** 2 / n;
  return out.map(Math.sqrt);
}

/** Rank of centred features, by elimination with the largest pivot on their correlation matrix. */
function rankOf(features: Float64Array, n: number, d: number): number {
  const c = new Float64Array(d * d);
  for (let i = 0; i < n; i++) {
    for (let a = 0; a < d; a++) {
      const x = features[i * d + a];
      if (x !== 0) for (let b = 0; b <= a; b++) c[a * d + b] += x * features[i * d + b];
    }
  }
  const scale = Float64Array.from({ length: d }, (_, a) => 1 / Math.sqrt(c[a * d + a] || 1));
  for (let a = 0; a < d; a++) {
    for (let b = 0; b <= a; b++) {
      c[a * d + b] *= scale[a] * scale[b];
      c[b * d + a] = c[a * d + b];
    }
  }
  const left = new Set(Array.from({ length: d }, (_, a) => a));
  let rank = 0;
  for (;;) {
    let pivot = -1;
    for (const a of left) if (pivot < 0 || c[a * d + a] > c[pivot * d + pivot]) pivot = a;
    if (pivot < 0 || c[pivot * d + pivot] < 1e-9) return rank;
    rank++;
    left.delete(pivot);
    for (const a of left) {
      const factor = c[a * d + pivot] / c[pivot * d + pivot];
      for (const b of left) c[a * d + b] -= factor * c[pivot * d + b];
    }
  }
}

/** r_i = x_i · β, [n]. */
export function rewardsOf({ features, n, d }: MixtureProblem, beta: Float64Array, out: Float64Array): Float64Array {
  if (!features) {
    out.set(beta);
    return out;
  }
  for (let i = 0; i < n; i++) {
    let sum = 0;
    for (let j = 0; j < d; j++) sum += features[i * d + j] * beta[j];
    out[i] = sum;
  }
  return out;
}

/**
 * Weighted log-likelihood of every vote, [m]: w_v log p(v), Plackett–Luce over the vote's stages
 * log p = Σ_s [r_(s) − log Σ_{l ≥ s} exp r_(l)]; a pair is Bradley–Terry with the row's margin. `rewards` [n].
 */
export function voteLikelihoods(votes: Votes, rewards: Float64Array, out: Float64Array): Float64Array {
  const { offsets, items, stages, weights, margins, m } = votes;
  for (let v = 0; v < m; v++) {
    const from = offsets[v];
    const to = offsets[v + 1];
    const ranked = from + stages[v];
    if (to - from === 2 && ranked > from) {
      const x = rewards[items[from]] - rewards[items[from + 1]] - margins[v];
      // log σ(x), without overflow and to the last digit near 0.
      const value = x >= 0 ? -Math.log1p(Math.exp(-x)) : x - Math.log1p(Math.exp(x));
      out[v] = weights[v] * value;
      continue;
    }
    let top = Number.NEGATIVE_INFINITY;
    let sum = 0;
    let value = 0;
    // From the last place to the first: one exponential each, exact however far apart the rewards are.
    for (let l = to - 1; l >= from; l--) {
      const r = rewards[items[l]] - (l === from ? margins[v] : 0);
      if (r > top) {
        sum = sum * Math.exp(top - r) + 1;
        top = r;
      } else sum += Math.exp(r - top);
      if (l < ranked) value += r - top - Math.log(sum);
    }
    out[v] = weights[v] * value;
  }
  return out;
}
