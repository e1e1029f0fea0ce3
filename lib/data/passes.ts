import type { Tree } from './pack.js';

/**
 * Trees, in their order, in passes of at most `maxTokens` (a tree at least) that all train or all do not. With `merge` a prompt
 * or completion that `pack` lets stand once is counted once where its trees stand beside each other, under one policy.
 */
export function passesOf<T extends Tree>(trees: readonly T[], maxTokens: number, merge: boolean): T[][] {
  const passes: T[][] = [];
  let tokens = 0;
  let known = new Map<Int32Array, Set<Int32Array>>();
  let before: Tree | undefined;
  for (const tree of trees) {
    if (before?.adapter !== tree.adapter) known = new Map();
    let more = newTokens(tree, known);
    if (tokens + more > maxTokens || before?.grad !== tree.grad) {
      passes.push([]);
      known = new Map();
      tokens = 0;
      more = newTokens(tree, known);
    }
    passes[passes.length - 1].push(tree);
    tokens += more;
    if (merge) learn(tree, known);
    before = tree;
  }
  return passes;
}

/**
 * Trees as passes of few policies want them, whose products have long runs of rows and whose equal prompts stand together:
 * those that train first, then policy by policy, in the order given.
 */
export function byPolicy<T extends Tree>(trees: readonly T[]): T[] {
  return [...trees].sort((a, b) => Number(b.grad) - Number(a.grad) || a.adapter - b.adapter);
}

/** Tokens that a tree adds to a pass where some prompts stand already, with these completions. */
function newTokens({ group: { prompt, completions } }: Tree, known: ReadonlyMap<Int32Array, Set<Int32Array>>): number {
  const there = known.get(prompt);
  return completions.reduce((sum, ids) => sum + (there?.has(ids) ? 0 : ids.length), there ? 0 : prompt.length);
}

function learn({ group: { prompt, completions } }: Tree, known: Map<Int32Array, Set<Int32Array>>): void {
  const there = known.get(prompt) ?? new Set();
  for (const ids of completions) there.add(ids);
  known.set(prompt, there);
}
