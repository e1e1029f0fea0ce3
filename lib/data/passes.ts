import { OpenTrees } from './merging.js';
import { mostTokens, type Tree, tokensOf } from './pack.js';

/**
 * Trees, in their order, in passes of at most `maxTokens` (a tree at least) that all train or all do not. With `merge`, as
 * `packTrees` will be given it, what equal prompts and completions beside each other share is counted once.
 */
export function passesOf<T extends Tree>(trees: readonly T[], maxTokens: number, merge: boolean | number): T[][] {
  const passes: T[][] = [];
  const most = mostTokens(merge);
  let open = new OpenTrees(most);
  let tokens = 0;
  let before: Tree | undefined;
  for (const tree of trees) {
    const cost = () => (merge ? open.cost(tree) : tokensOf(tree.group));
    let more = cost();
    if (tokens + more > maxTokens || before?.grad !== tree.grad) {
      passes.push([]);
      open = new OpenTrees(most);
      tokens = 0;
      more = cost();
    }
    passes[passes.length - 1].push(tree);
    tokens += more;
    if (merge) open.add(tree);
    before = tree;
  }
  return passes;
}
