import type { Tree } from './pack.js';

/**
 * Trees in passes of at most `maxTokens` (a tree at least): first passes of those with a gradient, then of those without;
 * in them policy by policy, in the order given. A pass so has few policies, its products have long runs of rows, and equal
 * prompts of a policy stand together: with `merge` a prompt or completion that `pack` lets stand once is counted once.
 */
export function passesOf<T extends Tree>(trees: readonly T[], maxTokens: number, merge: boolean): T[][] {
  const order = [...trees].sort((a, b) => Number(b.grad) - Number(a.grad) || a.adapter - b.adapter);
  const passes: T[][] = [];
  let tokens = Number.POSITIVE_INFINITY;
  let known = new Map<Int32Array, Set<Int32Array>>();
  let before: Tree | undefined;
  for (const tree of order) {
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
