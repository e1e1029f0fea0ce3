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

export interface ReinforceOptions {
  /** 1; with more, the mean of a prompt's samples is taken off first (the paper's baseline variant). */
  group_size: number;
  /** β of the KL in every token's reward. */
  beta: number;
  epochs: number;
  minibatches: number;
  clip: number;
}

/**
 * REINFORCE++ (Hu 2025, arXiv 2501.03262).
 *
 *   r_t = −β [log π(y_t) − log π_ref(y_t)], and the score at the last token (less the group's mean with group_size > 1)
 *   A_t = Σ_{s ≥ t} r_s, to mean 0 and deviation 1 over all tokens of the step
 *   minimise − mean over tokens of min(ρ_t A_t, clip(ρ_t) A_t)
 */
export class ReinforcePlusPlus implements PolicyMethod {
  readonly groupSize: number;
  readonly epochs: number;
  readonly minibatches: number;
  readonly critic = null;
  readonly stopKl = null;

  constructor(readonly options: ReinforceOptions) {
    this.groupSize = options.group_size;
    this.epochs = options.epochs;
    this.minibatches = options.minibatches;
  }

  estimate({ groups, groupOffsets, offsets, old, reference, scores }: Rollout): Estimate {
    const { beta, group_size } = this.options;
    const advantages = new Float64Array(old.length);
    groups.forEach((_, g) => {
      const [first, end] = [groupOffsets[g], groupOffsets[g + 1]];
      const mean = group_size > 1 ? scores.subarray(first, end).reduce((a, b) => a + b, 0) / (end - first) : 0;
      for (let c = first; c < end; c++) {
        let sum = scores[c] - mean;
        for (let t = offsets[c + 1] - 1; t >= offsets[c]; t--) advantages[t] = sum -= beta * (old[t] - reference[t]);
      }
    });
    return { advantages: whiten(advantages), returns: null, metrics: {} };
  }

  loss(part: UpdatePart, totals: UpdateTotals): UpdateOutcome {
    const { clip } = this.options;
    return tokenSurrogate(part, clip, clip, () => 1 / totals.tokens);
  }

  state(): unknown {
    return null;
  }

  restore(): void {}
}
