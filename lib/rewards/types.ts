import type { Text } from '../data/types.js';

/** An answer to a prompt, as rewards see it. */
export interface Sample {
  prompt: Text;
  /** What a reader reads: without special tokens and the ending (see `Wording` in generation/text.ts). */
  completion: string;
  /** Token ids; the completion's with its closing EOS where it has one. */
  promptIds: Int32Array;
  ids: Int32Array;
  /** The policy closed it; else it was cut at the longest length. */
  ended: boolean;
  /** Whom the prompt's row names. */
  annotator?: string;
}

/** One finite number for each sample. Larger is better. */
export type RewardFunction = (samples: readonly Sample[]) => ArrayLike<number> | Promise<ArrayLike<number>>;
