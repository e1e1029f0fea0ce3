import type { Votes } from './votes.js';

/** log(1 + eˣ) without overflow. */
export function softplus(x: number): number {
  return x > 0 ? x + Math.log1p(Math.exp(-x)) : Math.log1p(Math.exp(x));
}

/** 1 / (1 + e⁻ˣ). */
export function sigmoid(x: number): number {
  return x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x));
}

/**
 * A pair where ties can happen (Davidson 1970): P(first) ∝ e^{x/2}, P(second) ∝ e^{−x/2}, P(tie) ∝ ν. Minus the
 * log-likelihood of a choice of the first, or of a tie, with its two derivatives in x.
 */
export function davidson(x: number, nu: number, tie: boolean): { loss: number; slope: number; curvature: number } {
  if (tie && nu <= 0) return { loss: 0, slope: 0, curvature: 0 };
  const e = Math.exp(-Math.abs(x) / 2);
  const whole = 1 + e * e + nu * e;
  const normaliser = Math.abs(x) / 2 + Math.log1p(e * e + nu * e);
  const slope = (Math.sign(x) * (1 - e * e)) / (2 * whole);
  const curvature = (e * e + (nu * e * (1 + e * e)) / 4) / (whole * whole);
  if (tie) return { loss: normaliser - Math.log(nu), slope, curvature };
  return { loss: normaliser - x / 2, slope: slope - 0.5, curvature };
}

/**
 * Minus the log-likelihood of one vote, without its weight, given the reward of each of its places; writes the gradient
 * with respect to the rewards. A pair: −log σ(r₊ − r₋ − margin) (Bradley and Terry 1952). A ranking: Plackett–Luce,
 * Σ_s [log Σ_{j ≥ s} exp r_j − r_s] over its stages; two places are the pair.
 *
 * @param rewards one number for each place, in the vote's order; `gradient` has the same length
 * @param nu Davidson's ν for pairs: one without a stage is a tie; 0: it says nothing
 */
export function voteLoss(
  rewards: Float64Array,
  stages: number,
  margin: number,
  gradient: Float64Array,
  nu = 0,
): number {
  const n = rewards.length;
  if (n === 2) {
    const x = rewards[0] - rewards[1] - margin;
    if (nu > 0) {
      const { loss, slope } = davidson(x, nu, stages === 0);
      gradient[0] = slope;
      gradient[1] = -slope;
      return loss;
    }
    const g = stages > 0 ? sigmoid(-x) : 0;
    gradient[0] = -g;
    gradient[1] = g;
    return stages > 0 ? softplus(-x) : 0;
  }
  gradient.fill(0);
  let top = Number.NEGATIVE_INFINITY;
  let loss = 0;
  // From the last place to the first: log Σ_{j ≥ s} exp r_j builds up.
  const tail = new Float64Array(n);
  let sum = 0;
  for (let s = n - 1; s >= 0; s--) {
    if (rewards[s] > top) {
      sum = sum * Math.exp(top - rewards[s]) + 1;
      top = rewards[s];
    } else sum += Math.exp(rewards[s] - top);
    tail[s] = top + Math.log(sum);
  }
  for (let s = 0; s < stages; s++) {
    loss += tail[s] - rewards[s];
    gradient[s] -= 1;
    for (let j = s; j < n; j++) gradient[j] += Math.exp(rewards[j] - tail[s]);
  }
  return loss;
}

/** Rewards of the places of all votes → loss (weighted sum), and the gradient at each place [T]. */
export function lossAtPlaces(votes: Votes, rewards: Float64Array, gradient: Float64Array): number {
  let loss = 0;
  const { offsets, stages, margins, weights } = votes;
  for (let v = 0; v < votes.m; v++) {
    const from = offsets[v];
    const to = offsets[v + 1];
    const g = gradient.subarray(from, to);
    loss += weights[v] * voteLoss(rewards.subarray(from, to), stages[v], margins[v], g, votes.tie);
    for (let i = 0; i < g.length; i++) g[i] *= weights[v];
  }
  return loss;
}
