import { KlControl, type KlControlOptions } from './kl-control.js';
import {
  type Estimate,
  type PolicyMethod,
  type Rollout,
  tokenSurrogate,
  type UpdateOutcome,
  type UpdatePart,
  type UpdateTotals,
  whiten,
} from './policy.js';

/** β weighs the KL in every token’s reward. */
export interface PpoOptions extends KlControlOptions {
  epochs: number;
  minibatches: number;
  gamma: number;
  lambda: number;
  clip: number;
  value_clip: number;
  vf_coef: number;
  /** Rewards to deviation 1 over the step, their mean kept. */
  whiten_rewards: boolean;
  whiten_advantages: boolean;
  /** Leave a rollout once mean log π_old − log π exceeds this; null: never. */
  stop_kl: number | null;
}

/**
 * Proximal policy optimisation on text (Schulman et al. 2017; Ziegler et al. 2019; Stiennon et al. 2020).
 *
 *   r_t = −β [log π(y_t) − log π_ref(y_t)], and the score at the last token
 *   δ_t = r_t + γ V_{t+1} − V_t;  Â_t = Σ (γλ)^s δ_{t+s};  returns = Â + V;  Â to mean 0 and deviation 1
 *   minimise − mean min(ρ Â, clip(ρ) Â), and for the critic vf_coef · mean ½ max((V − R)², (clip(V, V_old ± value_clip) − R)²)
 *   β ×= 1 + clip(KL / target − 1, ± .2) · n / horizon
 */
export class Ppo implements PolicyMethod {
  readonly groupSize = 1;
  readonly epochs: number;
  readonly minibatches: number;
  readonly stopKl: number | null;
  readonly #kl: KlControl;

  constructor(readonly options: PpoOptions) {
    this.epochs = options.epochs;
    this.minibatches = options.minibatches;
    this.stopKl = options.stop_kl;
    this.#kl = new KlControl(options);
  }

  get beta(): number {
    return this.#kl.beta;
  }

  estimate(rollout: Rollout): Estimate {
    const { gamma, lambda, whiten_rewards, whiten_advantages } = this.options;
    const { offsets, old, reference, scores } = rollout;
    const values = rollout.values!;
    let rewards = Float64Array.from(old, (logp, t) => -this.#kl.beta * (logp - reference[t]));
    for (let c = 0; c < scores.length; c++) rewards[offsets[c + 1] - 1] += scores[c];
    if (whiten_rewards) rewards = Float64Array.from(whiten(rewards, true));
    const advantages = new Float64Array(old.length);
    for (let c = 0; c < scores.length; c++) {
      let sum = 0;
      for (let t = offsets[c + 1] - 1; t >= offsets[c]; t--) {
        const next = t + 1 < offsets[c + 1] ? values[t + 1] : 0;
        advantages[t] = sum = rewards[t] + gamma * next - values[t] + gamma * lambda * sum;
      }
    }
    const returns = advantages.map((a, t) => a + values[t]);
    const metrics = { beta: this.#kl.beta, explained_variance: explained(values, returns) };
    this.#kl.update(rollout);
    return { advantages: whiten_advantages ? whiten(advantages) : advantages, returns, metrics };
  }

  loss(part: UpdatePart, totals: UpdateTotals): UpdateOutcome {
    const { clip } = this.options;
    return tokenSurrogate(part, clip, clip, () => 1 / totals.tokens);
  }

  readonly critic = (values: Float32Array, old: Float32Array, returns: Float64Array, tokens: number): UpdateOutcome => {
    const { value_clip, vf_coef } = this.options;
    const gradient = new Float32Array(values.length);
    const out: UpdateOutcome = { loss: 0, gradient, clipped: 0, of: values.length };
    values.forEach((value, t) => {
      const bounded = Math.max(old[t] - value_clip, Math.min(old[t] + value_clip, value));
      const plain = (value - returns[t]) ** 2;
      const clipped = (bounded - returns[t]) ** 2;
      out.loss += (vf_coef * 0.5 * Math.max(plain, clipped)) / tokens;
      if (clipped > plain) out.clipped++;
      // A value beyond the bound moves the clipped square no more.
      const slope = clipped > plain ? 0 : value - returns[t];
      gradient[t] = (vf_coef * slope) / tokens;
    });
    return out;
  };

  state(): unknown {
    return this.#kl.state();
  }

  restore(state: unknown): void {
    this.#kl.restore(state);
  }
}

/** 1 − Var(returns − values) / Var(returns). */
function explained(values: Float32Array, returns: Float64Array): number {
  const variance = (of: (t: number) => number) => {
    let [sum, squares] = [0, 0];
    for (let t = 0; t < returns.length; t++) {
      sum += of(t);
      squares += of(t) ** 2;
    }
    return squares / returns.length - (sum / returns.length) ** 2;
  };
  const total = variance((t) => returns[t]);
  return total > 0 ? 1 - variance((t) => returns[t] - values[t]) / total : 0;
}
