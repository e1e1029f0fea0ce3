import type { NativeModelConfig } from '../lib/native/addon.js';
import { PluralignError } from '../lib/native/errors.js';

/** A decoder whose linear layers all differ in shape: hidden 8, 4 heads of 4, 2 of them for keys, intermediate 12. */
export function tinyModel(): NativeModelConfig {
  return {
    vocabSize: 16,
    hiddenSize: 8,
    intermediateSize: 12,
    layers: 2,
    heads: 4,
    kvHeads: 2,
    headDim: 4,
    normEps: 1e-5,
    ropeInverseFrequencies: Float64Array.from([1, 0.01]),
    ropeAttentionFactor: 1,
    slidingWindow: 0,
    qkNorm: false,
    tied: true,
  };
}

/** What `run` throws, which must be one of ours. */
export function errorOf(run: () => unknown): PluralignError {
  try {
    run();
  } catch (error) {
    if (error instanceof PluralignError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

export function fill(values: Float32Array, value: (index: number) => number): void {
  for (let i = 0; i < values.length; i++) values[i] = value(i);
}
