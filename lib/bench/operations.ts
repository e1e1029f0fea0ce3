import type { Tree } from '../data/pack.js';
import type { NativeModelConfig } from '../native/addon.js';

/** Floating-point operations (a multiply-add is two) of one policy on some trees, nothing computed twice. */
export interface Operations {
  forward: number;
  backward: number;
}

/**
 * What the definition of the model asks for: products of the linear layers and of adapters of rank `r` on all of them,
 * attention over the pairs that the mask lets through, the head at the rows that are read out. Of the last layer keys and
 * values count for all rows, the rest for those that are read. Element-wise work, the weights' own gradients (frozen) and what
 * an implementation pads or computes again do not count. Backward: the gradients of inputs (but of the first layer's q, k, v),
 * of factors, of scores, probabilities, queries, keys and values, of the head's rows.
 */
export function operationsOf(trees: readonly Tree[], config: NativeModelConfig, r: number): Operations {
  const { hiddenSize: d, intermediateSize: ff, heads, kvHeads, headDim, layers } = config;
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  let rows = 0;
  let readouts = 0;
  let read = 0;
  let pairs = 0;
  let readPairs = 0;
  for (const { group } of trees) {
    const prompt = group.prompt.length;
    rows += prompt;
    read += 1;
    pairs += (prompt * (prompt + 1)) / 2;
    readPairs += prompt;
    for (const { length } of group.completions) {
      rows += length;
      readouts += length;
      read += length - 1;
      pairs += length * prompt + (length * (length + 1)) / 2;
      readPairs += (length - 1) * prompt + (length * (length - 1)) / 2;
    }
  }
  let forward = 2 * readouts * d * config.vocabSize;
  let backward = forward;
  const linear = (of: number, from: number, to: number, first: boolean) => {
    forward += 2 * of * (from * to + r * (from + to));
    backward += 2 * of * ((first ? 0 : from * to) + r * (2 * (from + to) - (first ? from : 0)));
  };
  for (let layer = 0; layer < layers; layer++) {
    const [some, looks] = layer === layers - 1 ? [read, readPairs] : [rows, pairs];
    const first = layer === 0;
    linear(some, d, q, first);
    linear(rows, d, kv, first);
    linear(rows, d, kv, first);
    linear(some, q, d, false);
    linear(some, d, ff, false);
    linear(some, d, ff, false);
    linear(some, ff, d, false);
    forward += 4 * looks * q;
    backward += 8 * looks * q;
  }
  return { forward, backward };
}
