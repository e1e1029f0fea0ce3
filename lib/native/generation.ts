/** Generation as the addon takes it: sequences that run side by side, each under a policy of its own. */

import type { NativeBank, NativeModel } from './addon.js';

/** How several policies speak with one voice at decoding time; see native/ops/sample/sample.h. */
export type LogitMix = 'reverse-kl' | 'forward-kl' | 'alpha';

export interface NativeSequence {
  id: number;
  /** Token ids. */
  prompt: Int32Array;
  /** One adapter (-1: the base), or several whose logits are mixed. */
  adapters: Int32Array;
  /** Of each adapter; they add up to 1. */
  weights: Float32Array;
  mix: LogitMix;
  alpha: number;
  maxNewTokens: number;
  seed: number;
  /** 0: greedy. */
  temperature: number;
  /** 0: all. */
  topK: number;
  /** 1: all. */
  topP: number;
  /** 0: all. */
  minP: number;
  /** 1: none. */
  repetitionPenalty: number;
}

export interface NativeGenerated {
  /** Sequences that were written to or ended, [n]. */
  ids: Int32Array;
  /** End of each one's new tokens in `tokens`, [n]. */
  ends: Int32Array;
  tokens: Int32Array;
  /** Of each token: log softmax(logits / temperature), natural (temperature 1 where greedy). */
  logps: Float32Array;
  /** 1: it has reached a stop token (which is its last) or its longest length, [n]. */
  finished: Uint8Array;
  /** Sequences that run or wait. */
  left: number;
  /** Steps since the beginning that a GPU replayed from a recording (docs/cuda.md). */
  replayed: number;
}

export interface NativeGeneration {
  /** Adds and removes sequences, then writes at most `steps` tokens to each that there is room for. An error ends it for good. */
  run(
    bank: NativeBank | null,
    options: { add: NativeSequence[]; remove: Int32Array; steps: number; abort?: Int32Array },
  ): Promise<NativeGenerated>;
  /** Memory that the keys and values of a sequence of so many tokens take. */
  bytes(tokens: number): number;
}

export interface NativeGenerations {
  /** `rows`: policies' sequences at a time; `memory`: bytes for keys and values, negative: what a GPU has to spare; `stopTokens`: ids that end a sequence. */
  createGeneration(
    model: NativeModel,
    options: { rows: number; memory: number; stopTokens: Int32Array },
  ): NativeGeneration;
}
