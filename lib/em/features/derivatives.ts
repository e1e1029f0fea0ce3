import { sigmoid } from '../../features/likelihood.js';
import type { MixtureProblem } from './problem.js';

/** Votes with less responsibility than this move no parameter: their share of gradient and Hessian is below rounding of the rest. */
export const negligible = 1e-12;

/** Rewards this far below a vote's best count as this far: their choice probability is nothing in float64. */
const floor = -300;

/**
 * Gradient [d] and Hessian [d, d] of −Σ_v γ_{i(v)} w_v log p(v), in β. `rewards` [n] are those of β, `gamma` [N] is the
 * type's responsibility for each annotator.
 *
 * Where items are few and votes many, both are first summed over items (J² numbers for a vote, not J d²) and then carried
 * to β by the features.
 */
export class Derivatives {
  readonly gradient: Float64Array;
  readonly hessian: Float64Array;
  private readonly overItems: boolean;
  protected readonly itemGradient: Float64Array;
  protected readonly itemHessian: Float64Array;
  protected readonly e: Float64Array;
  protected readonly first: Float64Array;
  protected readonly second: Float64Array;
  protected readonly row: Float64Array;

  constructor(private readonly problem: MixtureProblem) {
    const { votes, features, n, d } = problem;
    let pairs = 0;
    let longest = 0;
    for (let v = 0; v < votes.m; v++) {
      const places = votes.offsets[v + 1] - votes.offsets[v];
      pairs += places * places;
      longest = Math.max(longest, places);
    }
    const places = votes.items.length;
    this.overItems = !features || (n <= 2048 && pairs + n * n * d + n * d * d < places * d * d);
    const items = this.overItems ? n : 0;
    this.gradient = new Float64Array(d);
    this.hessian = new Float64Array(d * d);
    this.itemGradient = features ? new Float64Array(items) : this.gradient;
    this.itemHessian = features ? new Float64Array(items * items) : this.hessian;
    this.e = new Float64Array(longest);
    this.first = new Float64Array(d);
    this.second = new Float64Array(d * d);
    this.row = new Float64Array(d);
  }

  at(rewards: Float64Array, gamma: Float64Array): void {
    this.gradient.fill(0);
    this.hessian.fill(0);
    if (this.overItems) {
      this.itemGradient.fill(0);
      this.itemHessian.fill(0);
      this.sumOverItems(rewards, gamma);
      if (this.problem.features) this.carryToFeatures(this.problem.features);
    } else this.sumOverFeatures(rewards, gamma, this.problem.features!);
    const { d } = this.problem;
    for (let a = 0; a < d; a++) for (let b = 0; b < a; b++) this.hessian[b * d + a] = this.hessian[a * d + b];
  }

  /** exp(r − best) of a vote's places into `e`. */
  private exponentials(v: number, rewards: Float64Array): void {
    const { offsets, items, margins } = this.problem.votes;
    const from = offsets[v];
    const places = offsets[v + 1] - from;
    const { e } = this;
    let top = Number.NEGATIVE_INFINITY;
    for (let l = 0; l < places; l++) {
      const r = rewards[items[from + l]] - (l === 0 ? margins[v] : 0);
      e[l] = r;
      if (r > top) top = r;
    }
    for (let l = 0; l < places; l++) e[l] = Math.exp(Math.max(floor, e[l] - top));
  }

  private sumOverFeatures(rewards: Float64Array, gamma: Float64Array, x: Float64Array): void {
    const { votes, d } = this.problem;
    const { offsets, items, stages, weights, margins, annotator, m } = votes;
    const { gradient, hessian, e, first, second } = this;
    for (let v = 0; v < m; v++) {
      const c = gamma[annotator[v]] * weights[v];
      if (!(c > negligible) || stages[v] === 0) continue;
      const from = offsets[v];
      const places = offsets[v + 1] - from;
      if (places === 2) {
        const p = sigmoid(rewards[items[from + 1]] - rewards[items[from]] + margins[v]);
        const win = items[from] * d;
        const lose = items[from + 1] * d;
        for (let a = 0; a < d; a++) {
          const delta = x[win + a] - x[lose + a];
          gradient[a] -= c * p * delta;
          const factor = c * p * (1 - p) * delta;
          for (let b = 0; b <= a; b++) hessian[a * d + b] += factor * (x[win + b] - x[lose + b]);
        }
        continue;
      }
      this.exponentials(v, rewards);
      first.fill(0);
      second.fill(0);
      let sum = 0;
      for (let l = places - 1; l >= 0; l--) {
        const at = items[from + l] * d;
        const weight = e[l];
        sum += weight;
        for (let a = 0; a < d; a++) {
          const wx = weight * x[at + a];
          first[a] += wx;
          for (let b = 0; b <= a; b++) second[a * d + b] += wx * x[at + b];
        }
        if (l >= stages[v]) continue;
        const share = c / sum;
        for (let a = 0; a < d; a++) {
          gradient[a] += share * first[a] - c * x[at + a];
          const mean = first[a] / sum;
          for (let b = 0; b <= a; b++) hessian[a * d + b] += share * (second[a * d + b] - mean * first[b]);
        }
      }
    }
  }

  private sumOverItems(rewards: Float64Array, gamma: Float64Array): void {
    const { votes, n } = this.problem;
    const { offsets, items, stages, weights, annotator, m } = votes;
    const { itemGradient: g, itemHessian: h, e } = this;
    for (let v = 0; v < m; v++) {
      const c = gamma[annotator[v]] * weights[v];
      if (!(c > negligible) || stages[v] === 0) continue;
      const from = offsets[v];
      const places = offsets[v + 1] - from;
      this.exponentials(v, rewards);
      let rest = 0;
      for (let l = 0; l < places; l++) rest += e[l];
      // Σ over the stages so far of 1 / S_s and of 1 / S_s², S_s the sum of those still to be chosen.
      let once = 0;
      let twice = 0;
      for (let l = 0; l < places; l++) {
        const i = items[from + l];
        if (l < stages[v]) {
          // The running difference loses what is small beside what went before; sum anew.
          if (l > 0) {
            rest = 0;
            for (let j = l; j < places; j++) rest += e[j];
          }
          once += c / rest;
          twice += c / (rest * rest);
          g[i] -= c;
        }
        const p = e[l] * once;
        g[i] += p;
        h[i * n + i] += p - e[l] * e[l] * twice;
        for (let j = l + 1; j < places; j++) {
          const other = items[from + j];
          // The place behind was there at every stage at which this one was.
          const both = e[l] * e[j] * twice;
          if (other < i) h[i * n + other] -= both;
          else if (other > i) h[other * n + i] -= both;
          else h[i * n + i] -= 2 * both;
        }
      }
    }
  }

  /** g ← Xᵀ g_items, H ← Xᵀ H_items X; both Hessians hold their lower triangle. */
  private carryToFeatures(x: Float64Array): void {
    const { n, d } = this.problem;
    const { itemGradient: g, itemHessian: h, gradient, hessian, row } = this;
    for (let i = 0; i < n; i++) {
      for (let a = 0; a < d; a++) gradient[a] += g[i] * x[i * d + a];
      row.fill(0);
      for (let j = 0; j < n; j++) {
        const value = j <= i ? h[i * n + j] : h[j * n + i];
        if (value !== 0) for (let a = 0; a < d; a++) row[a] += value * x[j * d + a];
      }
      for (let a = 0; a < d; a++) {
        const f = x[i * d + a];
        if (f !== 0) for (let b = 0; b <= a; b++) hessian[a * d + b] += f * row[b];
      }
    }
  }
}
