import { PluralignError } from '../native/errors.js';
import { checkNumber } from './native.js';

/** Float32 as the model writes them, or float64. */
export type TokenValues = Float32Array | Float64Array;

export interface LengthDesensitising {
  /** α in [0, 1]: the weight of tokens past the shared length (TRL's `ld_alpha`). */
  alpha: number;
  /** Tokens of each completion that count in full, [completions]; from `sharedLengths`. */
  shared: ArrayLike<number>;
}

function checkOffsets(offsets: Int32Array, length: number): void {
  const end = offsets.length ? offsets[offsets.length - 1] : undefined;
  if (end !== length || offsets[0] !== 0)
    throw new PluralignError(
      'BAD_SHAPE',
      `offsets run from ${offsets[0]} to ${end}; expected 0 to ${length}, the number of tokens`,
    );
}

/** The shorter of the two lengths of each pair: min(n_w, n_l). */
export function sharedLengths(chosenTokens: ArrayLike<number>, rejectedTokens: ArrayLike<number>): Float64Array {
  return Float64Array.from(chosenTokens, (n, i) => Math.min(n, rejectedTokens[i]));
}

/**
 * Sum of token log-probabilities of each completion. `offsets`: first token of each completion and the end of the last,
 * [completions + 1]. With `ld`: Σ_{t ≤ shared} + α Σ_{t > shared}, the length-desensitised log-probability of LD-DPO (Liu et
 * al. 2024); apply it to policy and reference alike. Accumulates in float64.
 */
export function sumTokens(values: TokenValues, offsets: Int32Array, ld?: LengthDesensitising): Float64Array {
  checkOffsets(offsets, values.length);
  if (ld) checkNumber('alpha', ld.alpha, 0);
  const sums = new Float64Array(offsets.length - 1);
  for (let i = 0; i < sums.length; i++) {
    const shared = ld ? offsets[i] + ld.shared[i] : offsets[i + 1];
    let head = 0;
    let tail = 0;
    for (let t = offsets[i]; t < offsets[i + 1]; t++) {
      if (t < shared) head += values[t];
      else tail += values[t];
    }
    sums[i] = ld ? head + ld.alpha * tail : head;
  }
  return sums;
}

/** The way back through `sumTokens`: gradient of the sums → gradient of each token's log-probability, into `out` or new. */
export function spreadGradient<T extends TokenValues = Float32Array>(
  dSums: Float64Array,
  offsets: Int32Array,
  ld?: LengthDesensitising,
  out: T = new Float32Array(offsets[offsets.length - 1] ?? 0) as T,
): T {
  checkOffsets(offsets, out.length);
  for (let i = 0; i < dSums.length; i++) {
    const shared = ld ? offsets[i] + ld.shared[i] : offsets[i + 1];
    for (let t = offsets[i]; t < offsets[i + 1]; t++) out[t] = t < shared ? dSums[i] : dSums[i] * ld!.alpha;
  }
  return out;
}

/**
 * Weight of each completion under the current policy, WPO (Zhou et al. 2024, eq. 2, "sampled" alignment):
 * exp(mean_t(log π(y_t) − log Σ_v π(v)²)). `squares`: Σ_v π(v)² at each token. A constant for the gradient.
 */
export function completionWeights(logps: TokenValues, squares: TokenValues, offsets: Int32Array): Float64Array {
  checkOffsets(offsets, logps.length);
  const weights = new Float64Array(offsets.length - 1);
  for (let i = 0; i < weights.length; i++) {
    let sum = 0;
    for (let t = offsets[i]; t < offsets[i + 1]; t++) sum += logps[t] - Math.log(squares[t]);
    weights[i] = Math.exp(sum / Math.max(1, offsets[i + 1] - offsets[i]));
  }
  return weights;
}

/** WPO's weight of a pair, the product of both completions' weights: pass as `PairScores.factors`. */
export function wpoWeights(chosen: Float64Array, rejected: Float64Array): Float64Array {
  return chosen.map((w, i) => w * rejected[i]);
}
