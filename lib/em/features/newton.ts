import { cholesky, choleskySolve } from '../../features/linalg.js';
import { Derivatives } from './derivatives.js';
import { type MixtureProblem, rewardsOf, voteLikelihoods } from './problem.js';

/** One type's rewards and what it says of every vote. */
export interface TypeState {
  /** [d] */
  beta: Float64Array;
  /** [n] */
  rewards: Float64Array;
  /** w_v log p_k(v), [m]. */
  likelihoods: Float64Array;
}

/** Rewards may move this far in one step: a Newton step from far off can be wild. */
const longestStep = 8;

/**
 * The weighted maximum-likelihood fit of one type: Newton's method from where the type stands, steps halved until
 * Σ_v γ_i w_v log p(v) − l2 |β|² / 2 does not fall.
 */
export class TypeFitter {
  protected readonly derivatives: Derivatives;
  protected readonly trial: TypeState;
  protected readonly step: Float64Array;
  protected readonly factor: Float64Array;
  /** The largest |x| of an item. */
  protected readonly longest: number;

  constructor(
    private readonly problem: MixtureProblem,
    private readonly l2: number,
  ) {
    this.derivatives = new Derivatives(problem);
    this.trial = this.state();
    this.step = new Float64Array(problem.d);
    this.factor = new Float64Array(problem.d * problem.d);
    this.longest = longestItem(problem);
  }

  state(beta: Float64Array = new Float64Array(this.problem.d)): TypeState {
    const { n, votes } = this.problem;
    const state = { beta, rewards: new Float64Array(n), likelihoods: new Float64Array(votes.m) };
    this.refresh(state);
    return state;
  }

  refresh(state: TypeState): void {
    rewardsOf(this.problem, state.beta, state.rewards);
    voteLikelihoods(this.problem.votes, state.rewards, state.likelihoods);
  }

  penalty(beta: Float64Array): number {
    return this.l2 === 0 ? 0 : 0.5 * this.l2 * beta.reduce((sum, b) => sum + b * b, 0);
  }

  private value(state: TypeState, gamma: Float64Array): number {
    const { annotator, m } = this.problem.votes;
    let sum = -this.penalty(state.beta);
    for (let v = 0; v < m; v++) {
      const share = gamma[annotator[v]];
      if (share > 0) sum += share * state.likelihoods[v];
    }
    return sum;
  }

  /** Moves `state` to the optimum, `gamma` [N] given. Ends when the step just taken had less than `tolerance` left to win. */
  fit(state: TypeState, gamma: Float64Array, tolerance: number, most = 50): void {
    const { d } = this.problem;
    const { derivatives, trial, step, factor } = this;
    let value = this.value(state, gamma);
    for (let iteration = 0; iteration < most; iteration++) {
      derivatives.at(state.rewards, gamma);
      const { gradient, hessian } = derivatives;
      let largest = 0;
      for (let a = 0; a < d; a++) {
        gradient[a] += this.l2 * state.beta[a];
        hessian[a * d + a] += this.l2;
        largest = Math.max(largest, hessian[a * d + a]);
      }
      if (!(largest > 0)) return;
      // Directions that no vote decides have no curvature; the gradient is nothing there too, so they stay.
      for (let ridge = 1e-9; ; ridge *= 100) {
        factor.set(hessian);
        for (let a = 0; a < d; a++) factor[a * d + a] = hessian[a * d + a] * (1 + ridge) + 1e-10 * largest;
        if (cholesky(factor, d)) break;
        if (ridge > 1e9) return;
      }
      step.set(gradient);
      choleskySolve(factor, d, step);
      let decrement = 0;
      for (let a = 0; a < d; a++) decrement += step[a] * gradient[a];
      if (!(decrement > 0)) return;
      let length = Math.min(1, longestStep / this.reach(step));
      let taken = false;
      for (let attempt = 0; attempt < 40 && !taken; attempt++, length /= 2) {
        for (let a = 0; a < d; a++) trial.beta[a] = state.beta[a] - length * step[a];
        this.refresh(trial);
        const next = this.value(trial, gamma);
        taken = next > value;
        if (taken) value = next;
        // A gain this small drowns in the rounding of the sum.
        else if (length * decrement < 1e-12 * (1 + Math.abs(value))) return;
      }
      if (!taken) return;
      for (const key of ['beta', 'rewards', 'likelihoods'] as const) {
        [state[key], trial[key]] = [trial[key], state[key]];
      }
      if (decrement < tolerance) return;
    }
  }

  /** How far the step can move a reward, at most: |x| |δ|. */
  private reach(step: Float64Array): number {
    let square = 0;
    for (let a = 0; a < step.length; a++) square += step[a] * step[a];
    return this.longest * Math.sqrt(square) + 1e-300;
  }
}

function longestItem({ features, n, d }: MixtureProblem): number {
  if (!features) return 1;
  let most = 0;
  for (let i = 0; i < n; i++) {
    let square = 0;
    for (let j = 0; j < d; j++) square += features[i * d + j] ** 2;
    most = Math.max(most, square);
  }
  return Math.sqrt(most);
}
