import { type Rollout, sequenceKl } from './policy.js';

export interface KlControlOptions {
  /** β of the KL in the reward: where it starts, and stays where `target` is null. */
  beta: number;
  /** KL of a sequence, in nats, that β is moved towards; null: β stays. */
  target: number | null;
  /** Samples over which β moves. */
  horizon: number;
}

/** The adaptive coefficient of Ziegler et al. 2019 (arXiv 1909.08593, §2.2): β ×= 1 + clip(KL / target − 1, ± .2) · n / horizon. */
export class KlControl {
  #beta: number;

  constructor(readonly options: KlControlOptions) {
    this.#beta = options.beta;
  }

  get beta(): number {
    return this.#beta;
  }

  /** The β of the next step, by the KL of this one's rollout. */
  update(rollout: Rollout): void {
    const { target, horizon } = this.options;
    if (target === null) return;
    const kl = sequenceKl(rollout);
    const mean = kl.reduce((a, b) => a + b, 0) / kl.length;
    const error = Math.max(-0.2, Math.min(0.2, mean / target - 1));
    this.#beta *= 1 + (error * kl.length) / horizon;
  }

  state(): { beta: number } {
    return { beta: this.#beta };
  }

  restore(state: unknown): void {
    this.#beta = (state as { beta: number } | null)?.beta ?? this.options.beta;
  }
}
