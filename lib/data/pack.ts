import type { NativePack } from '../native/addon.js';
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
}

/** A batch as one forest, with the way from the addon's readouts to completions and back. */
export interface Forest {
  trees: readonly Tree[];
  native: NativePack;
  /** First value of each completion and the end of the last, [completions + 1]; completions in the trees' order as given. */
  offsets: Int32Array;
  /** Readout of each value, [readouts]: values of one completion stand together, readouts ascend by row. */
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

/** Packs any trees: the same group may stand under several policies, and each group under a policy of its own. */
export function packTrees(trees: readonly Tree[], options: Omit<PackOptions, 'policies'>): Forest {
  const { read, sharePrompts = true } = options;
  const treeOffsets = new Int32Array(trees.length + 1);
  trees.forEach(({ group }, i) => {
    treeOffsets[i + 1] = treeOffsets[i] + group.completions.length;
  });
  const offsets = new Int32Array(treeOffsets[trees.length] + 1);
  let tokens = 0;
  let segments = 0;
  let at = 0;
  for (const { group } of trees) {
    for (const c of group.completions) {
      offsets[at + 1] = offsets[at] + (read === 'logps' ? c.length : 1);
      at++;
    }
    const copies = sharePrompts ? 1 : group.completions.length;
    tokens += tokensOf(group) + group.prompt.length * (copies - 1);
    segments += group.completions.length + copies;
  }
  const total = offsets[offsets.length - 1];
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
  const readouts = new Int32Array(total);
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
  const readAt = (row: number, target: number, value: number): void => {
    native.rows[readout] = row;
    native.targets[readout] = target;
    readouts[value] = readout++;
  };

  // Gradients first, then by adapter, as the addon wants its segments.
  const order = trees
    .map((_, i) => i)
    .sort((a, b) => Number(trees[b].grad) - Number(trees[a].grad) || trees[a].adapter - trees[b].adapter);
  for (const t of order) {
    const { group } = trees[t];
    const branch = (completion: number, parent: number): void => {
      const ids = group.completions[completion];
      const start = token;
      add(ids, parent, segmentKey(group.index, completion + 1), trees[t]);
      const value = offsets[treeOffsets[t] + completion];
      if (read === 'reward') readAt(token - 1, 0, value);
      else for (let i = 1; i < ids.length; i++) readAt(start + i - 1, ids[i], value + i);
    };
    // The prompt's last row predicts the first token of each of its children.
    const root = (from: number, to: number): number => {
      const parent = add(group.prompt, -1, segmentKey(group.index, 0), trees[t]);
      if (read === 'logps')
        for (let c = from; c < to; c++) readAt(token - 1, group.completions[c][0], offsets[treeOffsets[t] + c]);
      return parent;
    };
    const count = group.completions.length;
    const shared = sharePrompts ? root(0, count) : -1;
    for (let c = 0; c < count; c++) branch(c, sharePrompts ? shared : root(c, c + 1));
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

/** Readouts → values by completion, [readouts]. */
export function toCompletions(p: Forest, readouts: Float32Array): Float32Array {
  const out = new Float32Array(p.readouts.length);
  for (let i = 0; i < out.length; i++) out[i] = readouts[p.readouts[i]];
  return out;
}

/** The way back of `toCompletions`; values that are missing at the end are 0. */
export function toReadouts(p: Forest, values: Float32Array): Float32Array {
  const out = new Float32Array(p.readouts.length);
  for (let i = 0; i < values.length; i++) out[p.readouts[i]] = values[i];
  return out;
}
