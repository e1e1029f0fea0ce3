import type { NativePack } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import { OpenTrees } from './merging.js';
import type { Group } from './types.js';

/** A policy that scores every group of a pack: an adapter's index in the bank, or -1 for the base. */
export interface Policy {
  adapter: number;
  /** Keep activations for a backward pass. */
  grad: boolean;
}

/** One group under one policy: a prompt with its completions as branches. */
export interface Tree<T extends Group = Group> extends Policy {
  group: T;
}

export interface PackOptions {
  policies: readonly Policy[];
  /** `logps`: every completion token. `reward`: the last token of every completion. */
  read: 'logps' | 'reward';
  /** Off: every completion carries its own copy of the prompt. Scores are the same; it costs more. For tests. */
  sharePrompts?: boolean;
  /**
   * Groups of the same prompt under the same policy stand in one tree, and an equal completion of theirs stands once; arrays
   * are equal where they are the same array (`groupsOf` gives such). Not under dropout, whose masks are of each group. Scores
   * are the same, gradients within rounding. A number: tokens of a tree beyond which no further group joins it (true: 600).
   * Default: off.
   */
  merge?: boolean | number;
}

/** A batch as one forest, with the way from the addon's readouts to completions and back. */
export interface Forest {
  trees: readonly Tree[];
  native: NativePack;
  /** First value of each completion and the end of the last, [completions + 1]; completions in the trees' order as given. */
  offsets: Int32Array;
  /** Readout of each value, [values]: values of one completion stand together; equal completions that were merged share theirs. */
  readouts: Int32Array;
  /** First completion of each tree and the end of the last, [trees + 1]. */
  treeOffsets: Int32Array;
}

/**
 * Every group under every policy. Completions are counted policy by policy (as given), in each policy group by group, in
 * each group in row order.
 */
export interface Pack extends Forest {
  groups: readonly Group[];
  policies: readonly Policy[];
  /** First completion of each group under the first policy and the end of the last, [groups + 1]. */
  groupOffsets: Int32Array;
}

/** Tokens that a group takes in a pack, under one policy. */
export function tokensOf(group: Group): number {
  return group.completions.reduce((sum, c) => sum + c.length, group.prompt.length);
}

const segmentKey = (group: number, segment: number) => Math.imul(group + 1, 0x9e3779b1) + segment;

/** Packs every group under every policy. Prompts and completions must have at least one token each. */
export function pack(groups: readonly Group[], options: PackOptions): Pack {
  const { policies } = options;
  const trees = policies.flatMap((policy) => groups.map((group) => ({ group, ...policy })));
  const forest = packTrees(trees, options);
  return { ...forest, groups, policies, groupOffsets: forest.treeOffsets.subarray(0, groups.length + 1) };
}

/** A completion in a tree, and the first value of each that it stands for. */
interface Branch {
  ids: Int32Array;
  key: number;
  values: number[];
}

/** A prompt with its branches, under one policy. */
interface Trunk extends Policy {
  prompt: Int32Array;
  key: number;
  branches: Map<Int32Array, Branch> | Branch[];
  tokens: number;
}

const mostMerged = 600;

/** Tried as `merge` of trees that train where threads take shares of a pack. */
const limits = Array.from({ length: 10 }, (_, i) => 250 + 50 * i);

/** What the busiest of `threads` has to do where each takes the largest that is left. */
function makespan(sizes: readonly number[], threads: number): number {
  const busy = new Float64Array(threads);
  for (const size of [...sizes].sort((a, b) => b - a)) busy[busy.indexOf(Math.min(...busy))] += size;
  return Math.max(...busy);
}

/** `merge` as tokens of a tree: 0 where nothing is merged. */
export const mostTokens = (merge: boolean | number): number => (merge === true ? mostMerged : Number(merge));

/** Trees as the addon wants them: those that train first, then policy by policy, in the order given. */
export function byPolicy<T extends Policy>(trees: readonly T[]): T[] {
  return [...trees].sort((a, b) => Number(b.grad) - Number(a.grad) || a.adapter - b.adapter);
}

/**
 * `merge` for trees that train. Where threads take shares of a pack, which are whole trees, the limit under which there is
 * little to do in all, and for the busiest thread of two and of four: how a pack is cut must not depend on how many there are.
 */
export function mergeLimit(trees: readonly Tree[], model: { sharesPacks: boolean }): number {
  if (!model.sharesPacks) return tokensAPass;
  if (new Set(trees.map((tree) => tree.group.prompt)).size === trees.length) return mostMerged;
  const sorted = byPolicy(trees);
  const cost = (most: number) => {
    const open = new OpenTrees(most);
    for (const tree of sorted) open.add(tree);
    return open.sizes.reduce((sum, size) => sum + size, 0) + 2 * makespan(open.sizes, 2) + 2 * makespan(open.sizes, 4);
  };
  let best = { most: mostMerged, cost: Number.POSITIVE_INFINITY };
  for (const most of limits) {
    const found = cost(most);
    if (found < best.cost) best = { most, cost: found };
  }
  return best.most;
}

/** The least that `mergeLimit` gives: tokens of a pass are counted as if that were taken. */
export const leastMerged = (model: { sharesPacks: boolean }): number => (model.sharesPacks ? limits[0] : tokensAPass);

/** Trees as the addon wants them: gradients first, then by adapter. `values`: the first value of a tree's completion. */
function trunksOf(
  trees: readonly Tree[],
  { sharePrompts = true, merge = false }: Omit<PackOptions, 'policies'>,
  value: (tree: number, completion: number) => number,
): Trunk[] {
  const order = byPolicy(trees.map(({ adapter, grad }, t) => ({ adapter, grad, t })));
  const trunks: Trunk[] = [];
  const open = new OpenTrees(mostTokens(merge));
  for (const { t } of order) {
    const { group, adapter, grad } = trees[t];
    const { prompt, completions, index } = group;
    const trunk = (branches: Trunk['branches'], tokens: number): Trunk => {
      const made = { prompt, key: segmentKey(index, 0), adapter, grad, branches, tokens };
      trunks.push(made);
      return made;
    };
    const branch = (c: number): Branch => ({
      ids: completions[c],
      key: segmentKey(index, c + 1),
      values: [value(t, c)],
    });
    if (!sharePrompts) for (const [c, ids] of completions.entries()) trunk([branch(c)], prompt.length + ids.length);
    else if (!merge)
      trunk(
        Array.from(completions, (_, c) => branch(c)),
        tokensOf(group),
      );
    else {
      const into = trunks[open.add(trees[t])] ?? trunk(new Map(), prompt.length);
      const branches = into.branches as Map<Int32Array, Branch>;
      for (const [c, ids] of completions.entries()) {
        const same = branches.get(ids);
        if (same) same.values.push(value(t, c));
        else {
          branches.set(ids, branch(c));
          into.tokens += ids.length;
        }
      }
    }
  }
  return trunks;
}

/** Packs any trees: the same group may stand under several policies, and each group under a policy of its own. */
export function packTrees(trees: readonly Tree[], options: Omit<PackOptions, 'policies'>): Forest {
  const { read } = options;
  const treeOffsets = new Int32Array(trees.length + 1);
  trees.forEach(({ group }, i) => {
    treeOffsets[i + 1] = treeOffsets[i] + group.completions.length;
  });
  const offsets = new Int32Array(treeOffsets[trees.length] + 1);
  let at = 0;
  for (const { group } of trees)
    for (const c of group.completions) {
      offsets[at + 1] = offsets[at] + (read === 'logps' ? c.length : 1);
      at++;
    }
  const trunks = trunksOf(trees, options, (tree, completion) => offsets[treeOffsets[tree] + completion]);
  let tokens = 0;
  let segments = 0;
  let total = 0;
  for (const trunk of trunks) {
    tokens += trunk.prompt.length;
    segments++;
    for (const { ids } of trunk.branches.values()) {
      tokens += ids.length;
      segments++;
      total += read === 'logps' ? ids.length : 1;
    }
  }
  const native: NativePack = {
    tokens: new Int32Array(tokens),
    segmentStarts: new Int32Array(segments + 1),
    parents: new Int32Array(segments),
    adapters: new Int32Array(segments),
    needsGrad: new Uint8Array(segments),
    keys: new Uint32Array(segments),
    rows: new Int32Array(total),
    targets: new Int32Array(total),
  };
  const readouts = new Int32Array(offsets[offsets.length - 1]);
  let token = 0;
  let segment = 0;
  let readout = 0;
  const add = (ids: Int32Array, parent: number, key: number, { adapter, grad }: Policy): number => {
    native.tokens.set(ids, token);
    native.parents[segment] = parent;
    native.adapters[segment] = adapter;
    native.needsGrad[segment] = grad ? 1 : 0;
    native.keys[segment] = key;
    token += ids.length;
    native.segmentStarts[segment + 1] = token;
    return segment++;
  };
  const readAt = (row: number, target: number, values: readonly number[], place: number): void => {
    native.rows[readout] = row;
    native.targets[readout] = target;
    for (const value of values) readouts[value + place] = readout;
    readout++;
  };
  for (const trunk of trunks) {
    const parent = add(trunk.prompt, -1, trunk.key, trunk);
    // The prompt's last row predicts the first token of each of its children.
    if (read === 'logps') for (const { ids, values } of trunk.branches.values()) readAt(token - 1, ids[0], values, 0);
    for (const { ids, key, values } of trunk.branches.values()) {
      const start = token;
      add(ids, parent, key, trunk);
      if (read === 'reward') readAt(token - 1, 0, values, 0);
      else for (let i = 1; i < ids.length; i++) readAt(start + i - 1, ids[i], values, i);
    }
  }
  return { trees, native, offsets, readouts, treeOffsets };
}

/**
 * Tokens of a pass where a step may run as several: the activations of more leave the processor's caches, and every token
 * costs up to a quarter more (`bench train --curves`).
 */
export const tokensAPass = 1024;

/** Tokens of a pass where threads take shares of it (`Model.sharesPacks`): they end together where there are many. */
const tokensInShares = 4096;

/** Tokens of a pass where it fills a device: enough for most steps as one pack, and for every part of a GPU. */
const tokensAStep = 8192;

/**
 * Tokens of a pack by `train.max_tokens_per_pack`. auto: what a processor's caches hold, or what fills a GPU where one was
 * asked for. `model`: the one that runs it, where it is known. `whole`: enough for most steps as one pack.
 */
export function packTokens(
  train: { max_tokens_per_pack: 'auto' | number; device: string },
  { model, whole = false }: { model?: { sharesPacks: boolean }; whole?: boolean } = {},
): number {
  if (train.max_tokens_per_pack !== 'auto') return train.max_tokens_per_pack;
  if (whole || train.device.startsWith('cuda')) return tokensAStep;
  return model?.sharesPacks ? tokensInShares : tokensAPass;
}

/** Splits groups, in their order, into runs of at most `maxTokens` tokens over all policies (one group at least). */
export function splitByTokens<T extends Group>(groups: readonly T[], policies: number, maxTokens: number): T[][] {
  const runs: T[][] = [];
  let tokens = Number.POSITIVE_INFINITY;
  for (const group of groups) {
    const n = tokensOf(group) * policies;
    if (tokens + n > maxTokens) {
      runs.push([]);
      tokens = 0;
    }
    runs[runs.length - 1].push(group);
    tokens += n;
  }
  return runs;
}

/** Readouts → values by completion, [values]. */
export function toCompletions(p: Forest, readouts: Float32Array): Float32Array {
  const out = new Float32Array(p.readouts.length);
  for (let i = 0; i < out.length; i++) out[i] = readouts[p.readouts[i]];
  return out;
}

/** Gradients of values → of readouts, [readouts]. Throws BAD_ARGUMENT where there is not one for each value. */
export function toReadouts(p: Forest, values: Float32Array): Float32Array {
  if (values.length !== p.readouts.length)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `gradient must have one element for each of ${p.readouts.length} values of the pack's readouts, found ${values.length}`,
    );
  const out = new Float32Array(p.native.rows.length);
  for (let i = 0; i < values.length; i++) out[p.readouts[i]] += values[i];
  return out;
}
