import { describe, expect, it } from 'vitest';
import { byPolicy, packTrees, type Tree } from '../lib/data/pack.js';
import { passesOf } from '../lib/data/passes.js';
import type { Group } from '../lib/data/types.js';
import { runsOf } from '../lib/training/scorer.js';

const ids = (n: number, first = 0) => Int32Array.from({ length: n }, (_, i) => first + i);
const origin = { file: 'rows.jsonl', line: 1 };
const group = (index: number, prompt: Int32Array, completions: Int32Array[]): Group => ({
  ...{ index, kind: 'pair', prompt, completions, weight: 1, origin },
});
const tokens = (trees: readonly Tree[], merge: boolean | number) =>
  packTrees(trees, { read: 'logps', merge }).native.tokens.length;

describe('passesOf', () => {
  const [p, q] = [ids(10), ids(20)];
  const [a, b, c] = [ids(5), ids(7, 3), ids(9, 5)];
  const groups = [group(0, p, [a, b]), group(1, q, [a, c]), group(2, p, [a, c])];
  const trees: Tree[] = groups.flatMap((g) => [
    { group: g, adapter: -1, grad: false },
    { group: g, adapter: 1, grad: true },
    { group: g, adapter: 0, grad: true },
  ]);
  const name = ({ group, adapter, grad }: Tree) => `${adapter}${grad ? '+' : ''} ${group.index}`;

  it('puts trees with a gradient in passes of their own, policy by policy, in the order given', () => {
    expect(passesOf(byPolicy(trees), 1e6, false).map((pass) => pass.map(name))).toEqual([
      ['0+ 0', '0+ 1', '0+ 2', '1+ 0', '1+ 1', '1+ 2'],
      ['-1 0', '-1 1', '-1 2'],
    ]);
    expect(passesOf([], 10, true)).toEqual([]);
  });

  it('counts every tree alone, or what equal prompts and completions of a policy add', () => {
    // Alone 22, 34 and 24 tokens; merged, in the order 0, 1, 2: 22, 34 and 9.
    for (const [merge, most, sizes] of [
      [false, 80, [3]],
      [false, 79, [2, 1]],
      [true, 65, [3]],
      [true, 64, [2, 1]],
      [true, 55, [1, 1, 1]],
      [false, 1, [1, 1, 1]],
    ] as const) {
      const own = trees.filter((tree) => tree.adapter === 0);
      const passes = passesOf(own, most, merge);
      expect(runsOf(groups, 0, most, merge)).toEqual(passes.map((pass) => pass.map((tree) => tree.group)));
      expect(passes.map((pass) => pass.length)).toEqual(sizes);
      for (const pass of passes) if (pass.length > 1) expect(tokens(pass, merge)).toBeLessThanOrEqual(most);
    }
  });

  it('counts a prompt again with each tree that repeats it', () => {
    for (const [prompt, completion, most, merge] of [
      [590, 20, 1024, true],
      [2000, 50, 8192, 1024],
      [400, 80, 4096, 250],
    ] as const) {
      const shared = ids(prompt);
      const pairs = Array.from({ length: 60 }, (_, i) =>
        group(i, shared, [ids(completion, i), ids(completion, i + 100)]),
      );
      const passes = runsOf(pairs, 0, most, merge);
      const sizes = passes.map((run) =>
        tokens(
          run.map((g) => ({ group: g, adapter: 0, grad: false })),
          merge,
        ),
      );
      expect(Math.max(...sizes)).toBeLessThanOrEqual(most);
      expect(sizes.reduce((sum, n) => sum + n)).toBeGreaterThan(most);
      expect(passes.flat()).toEqual(pairs);
    }
  });

  it('counts what groups share under one adapter, not under adapters of their own', () => {
    expect(runsOf(groups, 0, 65).map((run) => run.length)).toEqual([3]);
    expect(runsOf(groups, ({ index }) => index, 65).map((run) => run.length)).toEqual([2, 1]);
  });

  it('begins the count again with each policy and each pass', () => {
    const both = byPolicy(trees.filter((tree) => tree.grad && tree.group.prompt === p));
    // 31 tokens each: a second policy shares nothing with the first.
    expect(passesOf(both, 62, true).map((pass) => pass.length)).toEqual([4]);
    expect(passesOf(both, 61, true).map((pass) => pass.length)).toEqual([3, 1]);
    // Group 2 of the second policy stands alone, with its prompt: 24.
    expect(passesOf(both, 52, true).map((pass) => pass.map(name))).toEqual([
      ['0+ 0', '0+ 2'],
      ['1+ 0', '1+ 2'],
    ]);
    expect(passesOf(both, 30, true).map((pass) => pass.map(name))).toEqual([['0+ 0'], ['0+ 2'], ['1+ 0'], ['1+ 2']]);
  });
});
