import { KlControl, type KlControlOptions } from './kl-control.js';
import {
  type Estimate,
  type PolicyMethod,
  type Rollout,
  sequenceKl,
  spread,
  surrogate,
  type UpdateOutcome,
  type UpdatePart,
  type UpdateTotals,
  whiten,
} from './policy.js';

/** β weighs the KL of a whole sequence in its reward. */
export interface RlooOptions extends KlControlOptions {
  /** k, samples of each prompt: at least 2. */
  group_size: number;
  epochs: number;
  minibatches: number;
  /** The sequence's ratio is kept within 1 ± clip. */
  clip: number;
  /** Advantages to mean 0 and deviation 1 over the step. */
  normalise_advantages: boolean;
}

/**
 * REINFORCE with a leave-one-out baseline (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740, eq. 7).
 *
 *   for each prompt: y_1 … y_k ∼ π
 *   R_i = r(y_i) − β Σ_t [log π(y_it) − log π_ref(y_it)]
 *   A_i = R_i − mean of the other R_j
 *   minimise − mean_i min(ρ_i A_i, clip(ρ_i) A_i),  ρ_i = π(y_i) / π_old(y_i), of whole sequences
 *   with a target, β moves as PPO's does
 */
export class Rloo implements PolicyMethod {
  readonly groupSize: number;
  readonly epochs: number;
  readonly minibatches: number;
  readonly critic = null;
  readonly stopKl = null;
  readonly #kl: KlControl;

  constructor(readonly options: RlooOptions) {
    this.#kl = new KlControl(options);
    this.groupSize = options.group_size;
    this.epochs = options.epochs;
    this.minibatches = options.minibatches;
  }

  estimate(rollout: Rollout): Estimate {
    const { normalise_advantages, target } = this.options;
    const { beta } = this.#kl;
    const kl = sequenceKl(rollout);
    const rewards = rollout.scores.map((score, c) => score - beta * kl[c]);
    const advantages = new Float64Array(rewards.length);
    rollout.groups.forEach((_, g) => {
      const [from, to] = [rollout.groupOffsets[g], rollout.groupOffsets[g + 1]];
      const sum = rewards.subarray(from, to).reduce((a, b) => a + b, 0);
      for (let c = from; c < to; c++) advantages[c] = rewards[c] - (sum - rewards[c]) / (to - from - 1);
    });
    this.#kl.update(rollout);
    const used = normalise_advantages ? whiten(advantages) : advantages;
    return { advantages: spread(used, rollout.offsets), returns: null, metrics: target === null ? {} : { beta } };
  }

  loss({ offsets, logps, old, advantages }: UpdatePart, totals: UpdateTotals): UpdateOutcome {
    const { clip } = this.options;
    const gradient = new Float32Array(logps.length);
    const out: UpdateOutcome = { loss: 0, gradient, clipped: 0, of: offsets.length - 1 };
    for (let c = 0; c < offsets.length - 1; c++) {
      const [from, to] = [offsets[c], offsets[c + 1]];
      let difference = 0;
      for (let t = from; t < to; t++) difference += logps[t] - old[t];
      const { loss, slope, clipped } = surrogate(difference, advantages[from], clip, clip);
      out.loss += loss / totals.completions;
      gradient.fill(slope / totals.completions, from, to);
      out.clipped += clipped ? 1 : 0;
    }
    return out;
  }

  state(): unknown {
    return this.#kl.state();
  }

  restore(state: unknown): void {
    this.#kl.restore(state);
  }
}
