import {
  type Estimate,
  momentsOf,
  type PolicyMethod,
  type Rollout,
  spread,
  tokenSurrogate,
  type UpdateOutcome,
  type UpdatePart,
  type UpdateTotals,
} from './policy.js';

export interface GrpoOptions {
  group_size: number;
  /** β of the KL beside the loss (k3); 0: no reference is needed. */
  beta: number;
  epochs: number;
  minibatches: number;
  /** Ratios are kept within [1 − clip, 1 + clip_high]; clip_high null: clip. */
  clip: number;
  clip_high: number | null;
  /** What token losses are averaged over. */
  loss: 'grpo' | 'dr_grpo' | 'dapo' | 'bnpo';
  /** What an advantage is divided by: its group's deviation, the step's, or nothing. */
  scale: 'group' | 'batch' | 'none';
  /** Several rewards: as one and then against the group, or each against the group and then as one (GDPO). */
  aggregation: 'sum_then_normalise' | 'normalise_then_sum';
}

const epsilon = 1e-4;

/**
 * Group-relative policy optimisation (Shao et al. 2024, arXiv 2402.03300).
 *
 *   for each prompt: y_1 … y_G ∼ π;  A_i = (r_i − mean r) / (std r + 1e-4), the same for all tokens of y_i
 *   minimise  Σ_it w_i { − min(ρ_it A_i, clip(ρ_it) A_i) + β [e^(d_it) − d_it − 1] },  d = log π_ref − log π
 *   w_i = 1 / (N |y_i|)        grpo:  every completion alike
 *       = 1 / (N longest)      dr_grpo (Liu et al. 2025): no length in it; with scale: none
 *       = 1 / Σ |y|            bnpo, over the update; dapo (Yu et al. 2025), over the step
 */
export class Grpo implements PolicyMethod {
  readonly groupSize: number;
  readonly epochs: number;
  readonly minibatches: number;
  readonly critic = null;
  readonly stopKl = null;

  constructor(readonly options: GrpoOptions) {
    this.groupSize = options.group_size;
    this.epochs = options.epochs;
    this.minibatches = options.minibatches;
  }

  estimate(rollout: Rollout): Estimate {
    const each = this.options.aggregation === 'normalise_then_sum';
    let advantages: Float64Array;
    if (each) {
      const sum = new Float64Array(rollout.scores.length);
      rollout.parts.forEach((part, k) => {
        const own = relative(rollout, part, this.options.scale === 'none' ? 'none' : 'group');
        for (let c = 0; c < sum.length; c++) sum[c] += rollout.weights[k] * own[c];
      });
      const { mean, variance } = momentsOf(sum);
      advantages = sum.map((a) => (a - mean) / (Math.sqrt(variance) + epsilon));
    } else advantages = relative(rollout, rollout.scores, this.options.scale);
    return { advantages: spread(advantages, rollout.offsets), returns: null, metrics: {} };
  }

  loss(part: UpdatePart, totals: UpdateTotals): UpdateOutcome {
    const { clip, clip_high, beta, loss } = this.options;
    const { offsets, logps, reference } = part;
    const weights = {
      grpo: (c: number) => 1 / (totals.completions * (offsets[c + 1] - offsets[c])),
      dr_grpo: () => 1 / (totals.completions * totals.longest),
      bnpo: () => 1 / totals.tokens,
      dapo: () => 1 / totals.rolloutTokens,
    };
    const weight = weights[loss];
    const out = tokenSurrogate(part, clip, clip_high ?? clip, weight);
    if (beta === 0) return out;
    for (let c = 0; c < offsets.length - 1; c++) {
      const w = beta * weight(c);
      for (let t = offsets[c]; t < offsets[c + 1]; t++) {
        const d = reference[t] - logps[t];
        out.loss += w * (Math.exp(d) - d - 1);
        out.gradient[t] += w * (1 - Math.exp(d));
      }
    }
    return out;
  }

  state(): unknown {
    return null;
  }

  restore(): void {}
}

/** Rewards against the mean of their group, [C]. Deviations are unbiased (n − 1). */
function relative({ groups, groupOffsets }: Rollout, rewards: Float64Array, scale: GrpoOptions['scale']): Float64Array {
  const out = new Float64Array(rewards.length);
  const all = Math.sqrt(momentsOf(rewards).variance);
  groups.forEach((_, g) => {
    const [from, to] = [groupOffsets[g], groupOffsets[g + 1]];
    const { mean, variance } = momentsOf(rewards.subarray(from, to));
    const by = scale === 'none' ? 1 : (scale === 'batch' ? all : Math.sqrt(variance)) + epsilon;
    for (let c = from; c < to; c++) out[c] = (rewards[c] - mean) / by;
  });
  return out;
}
