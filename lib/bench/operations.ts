import type { Tree } from '../data/pack.js';
import type { NativeModelConfig } from '../native/addon.js';

/** Floating-point operations (a multiply-add is two) of one policy on some trees, nothing computed twice. */
export interface Operations {
  forward: number;
  backward: number;
}

/**
 * What the definition of the model asks for: products of the linear layers and of adapters of rank `r` on all of them,
 * attention over the pairs that the mask lets through, the head at the rows that are read out. Element-wise work, the
 * weights' own gradients (frozen) and what an implementation pads or computes again do not count. Backward: the gradients of
 * inputs (but of the first layer's q, k, v), of factors, of scores, probabilities, queries, keys and values, of the head's rows.
 */
export function operationsOf(trees: readonly Tree[], config: NativeModelConfig, r: number): Operations {
  const { hiddenSize: d, intermediateSize: ff, heads, kvHeads, headDim, layers } = config;
  const [q, kv] = [heads * headDim, kvHeads * headDim];
  const linears = [
    [d, q],
    [d, kv],
    [d, kv],
    [q, d],
    [d, ff],
    [d, ff],
    [ff, d],
  ];
  const weights = layers * linears.reduce((sum, [from, to]) => sum + from * to, 0);
  const factors = layers * linears.reduce((sum, [from, to]) => sum + r * (from + to), 0);
  const untaken = d * (q + 2 * kv) + r * 3 * d;
  let rows = 0;
  let readouts = 0;
  let pairs = 0;
  for (const { group } of trees) {
    const prompt = group.prompt.length;
    rows += prompt;
    pairs += (prompt * (prompt + 1)) / 2;
    for (const { length } of group.completions) {
      rows += length;
      readouts += length;
      pairs += length * prompt + (length * (length + 1)) / 2;
    }
  }
  const attention = 2 * layers * pairs * q;
  const head = 2 * readouts * d * config.vocabSize;
  return {
    forward: 2 * rows * (weights + factors) + 2 * attention + head,
    backward: 2 * rows * (weights + 2 * factors - untaken) + 4 * attention + head,
  };
}
