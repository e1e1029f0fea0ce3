import type { Tree } from './pack.js';

/**
 * Which groups stand in one tree of a pack: those of the same prompt under the same policy, while it has at most `most` tokens,
 * an equal completion once. Prompts and completions are equal where they are the same array. A policy's groups come together.
 */
export class OpenTrees {
  /** Tokens of each tree, in the order in which they began. */
  readonly sizes: number[] = [];
  #open = new Map<Int32Array, { tree: number; completions: Set<Int32Array> }>();
  #before: Tree | undefined;

  constructor(readonly most: number) {}

  /** Tokens that a group would add. */
  cost(tree: Tree): number {
    const { prompt, completions } = tree.group;
    const into = this.#joins(tree);
    return (into ? 0 : prompt.length) + newTokens(completions, into?.completions);
  }

  /** Takes a group in; gives its tree. */
  add(tree: Tree): number {
    const { prompt, completions } = tree.group;
    let into = this.#joins(tree);
    if (!this.#follows(tree)) this.#open = new Map();
    this.#before = tree;
    if (!into) {
      into = { tree: this.sizes.push(prompt.length) - 1, completions: new Set() };
      this.#open.set(prompt, into);
    }
    this.sizes[into.tree] += newTokens(completions, into.completions);
    for (const ids of completions) into.completions.add(ids);
    return into.tree;
  }

  #follows({ adapter, grad }: Tree): boolean {
    return this.#before?.adapter === adapter && this.#before.grad === grad;
  }

  #joins(tree: Tree) {
    const into = this.#follows(tree) ? this.#open.get(tree.group.prompt) : undefined;
    if (!into) return undefined;
    const more = newTokens(tree.group.completions, into.completions);
    return more === 0 || this.sizes[into.tree] + more <= this.most ? into : undefined;
  }
}

function newTokens(completions: readonly Int32Array[], known: ReadonlySet<Int32Array> | undefined): number {
  let sum = 0;
  for (let c = 0; c < completions.length; c++)
    if (!known?.has(completions[c]) && completions.indexOf(completions[c]) === c) sum += completions[c].length;
  return sum;
}
