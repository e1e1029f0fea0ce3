import { PluralignError } from '../native/errors.js';
import type { LogitMix, NativeSequence } from '../native/generation.js';

/** How the next token is drawn. Tokens that top-k, top-p and min-p all keep, after the penalty, at the temperature. */
export interface Sampling {
  /** 0 (default): greedy. */
  temperature?: number;
  /** The likeliest k; 0 (default): all. */
  topK?: number;
  /** The likeliest tokens that together reach this probability (among the k likeliest); 1 (default): all. */
  topP?: number;
  /** Tokens of at least this share of the likeliest one's probability; 0 (default): all. */
  minP?: number;
  /** Divides the logits of tokens that stand in the prompt or the text where positive, else multiplies; 1 (default): off. */
  repetitionPenalty?: number;
}

/** Several policies whose logits are mixed at every token (decoding-time multi-objective alignment, arXiv 2406.18853). */
export interface LogitMixture {
  /** Adapter indices in the bank; -1: the base. */
  adapters: readonly number[];
  /** Divided by their sum; 0 leaves a policy out. Negative ones with `reverse-kl` only. */
  weights: readonly number[];
  /** `reverse-kl` (default): Π π^w; `forward-kl`: 1 / Σ (w / π); `alpha`: (Σ w π^-α)^(-1/α). */
  mix?: LogitMix;
  /** α of `alpha`; default 1. */
  alpha?: number;
}

export interface SequenceRequest extends Sampling {
  /** Token ids with BOS. */
  prompt: Int32Array;
  /** Adapter index in the bank (-1, default: the base), or a mixture of logits. */
  policy?: number | LogitMixture;
  /** Default 64. */
  maxNewTokens?: number;
  /** What the sequence says depends on it, the prompt, the policy and the sampling alone. Default 0. */
  seed?: number;
}

/**
 * The mixture that a request names, as adapters and weights that add up to 1; a single policy is one of weight 1. Throws
 * `BAD_ARGUMENT`.
 */
function members(policy: number | LogitMixture): { adapters: number[]; weights: number[] } {
  const unknown = (typeof policy === 'number' ? [policy] : policy.adapters).find((a) => !Number.isSafeInteger(a));
  if (unknown !== undefined)
    throw new PluralignError('BAD_ARGUMENT', `adapter must be an index in the bank or -1, found ${unknown}`);
  if (typeof policy === 'number') return { adapters: [policy], weights: [1] };
  const { adapters, weights, mix = 'reverse-kl' } = policy;
  const fail = (message: string): never => {
    throw new PluralignError('BAD_ARGUMENT', `mixed policies: ${message}`);
  };
  if (adapters.length !== weights.length || adapters.length === 0)
    fail(`${adapters.length} adapters and ${weights.length} weights`);
  const bad = weights.find((w) => !Number.isFinite(w));
  if (bad !== undefined) fail(`a weight is ${bad}, expected a number`);
  const total = weights.reduce((sum, w) => sum + w, 0);
  if (!(total > 0)) fail(`the weights add up to ${total}, expected more than 0`);
  if (mix !== 'reverse-kl' && weights.some((w) => w < 0)) fail(`${mix} takes no negative weights`);
  const used = adapters.map((adapter, i) => ({ adapter, weight: weights[i] / total })).filter((m) => m.weight !== 0);
  return { adapters: used.map((m) => m.adapter), weights: used.map((m) => m.weight) };
}

/** A request with every value filled in, as the addon takes it; the addon checks ranges. */
export function nativeSequence(id: number, request: SequenceRequest): NativeSequence {
  const { prompt, policy = -1, maxNewTokens = 64, seed = 0 } = request;
  const { adapters, weights } = members(policy);
  const mixture: Partial<LogitMixture> = typeof policy === 'number' ? {} : policy;
  return {
    id,
    prompt,
    adapters: Int32Array.from(adapters),
    weights: Float32Array.from(weights),
    mix: mixture.mix ?? 'reverse-kl',
    alpha: mixture.alpha ?? 1,
    maxNewTokens,
    seed: seed >>> 0,
    temperature: request.temperature ?? 0,
    topK: request.topK ?? 0,
    topP: request.topP ?? 1,
    minP: request.minP ?? 0,
    repetitionPenalty: request.repetitionPenalty ?? 1,
  };
}
