import type { NativePack } from '../native/addon.js';
import type { Group } from './types.js';

/** A policy that scores every group of a pack: an adapter's index in the bank, or -1 for the base. */
export interface Policy {
  adapter: number;
  /** Keep activations for a backward pass. */
  grad: boolean;
}

export interface PackOptions {
  policies: readonly Policy[];
  /** `logps`: every completion token. `reward`: the last token of every completion. */
  read: 'logps' | 'reward';
  /** Off: every completion carries its own copy of the prompt. Scores are the same; it costs more. For tests. */
  sharePrompts?: boolean;
}

/**
 * A batch as one forest, with the way from the addon's readouts to completions and back. Completions are counted policy
 * by policy (as given), in each policy group by group, in each group in row order.
 */
export interface Pack {
  groups: readonly Group[];
  policies: readonly Policy[];
  native: NativePack;
  /** First value of each completion and the end of the last, [completions + 1]. */
  offsets: Int32Array;
  /** Readout of each value, [readouts]: values of one completion stand together, readouts ascend by row. */
  readouts: Int32Array;
  /** First completion of each group under the first policy and the end of the last, [groups + 1]. */
  groupOffsets: Int32Array;
}

/** Tokens that a group takes in a pack, under one policy. */
export function tokensOf(group: Group): number {
  return group.completions.reduce((sum, c) => sum + c.length, group.prompt.length);
}

const segmentKey = (group: number, segment: number) => Math.imul(group + 1, 0x9e3779b1) + segment;

/** Packs groups under the given policies. Prompts and completions must have at least one token each. */
export function pack(groups: readonly Group[], options: PackOptions): Pack {
  const { policies, read, sharePrompts = true } = options;
  const perPolicy = groups.reduce((sum, g) => sum + g.completions.length, 0);
  const groupOffsets = new Int32Array(groups.length + 1);
  groups.forEach((g, i) => {
    groupOffsets[i + 1] = groupOffsets[i] + g.completions.length;
  });
  const lengths = groups.flatMap((g) => g.completions.map((c) => (read === 'logps' ? c.length : 1)));
  const offsets = new Int32Array(perPolicy * policies.length + 1);
  for (let c = 0; c < offsets.length - 1; c++) offsets[c + 1] = offsets[c] + lengths[c % perPolicy];

  const tokens = groups.reduce(
    (sum, g) => sum + (sharePrompts ? tokensOf(g) : tokensOf(g) + g.prompt.length * (g.completions.length - 1)),
    0,
  );
  const segments = groups.reduce((sum, g) => sum + g.completions.length + (sharePrompts ? 1 : g.completions.length), 0);
  const total = offsets[offsets.length - 1];
  const native: NativePack = {
    tokens: new Int32Array(tokens * policies.length),
    segmentStarts: new Int32Array(segments * policies.length + 1),
    parents: new Int32Array(segments * policies.length),
    adapters: new Int32Array(segments * policies.length),
    needsGrad: new Uint8Array(segments * policies.length),
    keys: new Uint32Array(segments * policies.length),
    rows: new Int32Array(total),
    targets: new Int32Array(total),
  };
  const readouts = new Int32Array(total);
  let token = 0;
  let segment = 0;
  let readout = 0;

  // Gradients first, then by adapter, as the addon wants its segments.
  const order = policies
    .map((_, i) => i)
    .sort((a, b) => Number(policies[b].grad) - Number(policies[a].grad) || policies[a].adapter - policies[b].adapter);
  for (const p of order) {
    const { adapter, grad } = policies[p];
    const add = (ids: Int32Array, parent: number, key: number): number => {
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
    groups.forEach((group, g) => {
      const first = p * perPolicy + groupOffsets[g];
      const branch = (completion: number, parent: number): void => {
        const ids = group.completions[completion];
        const start = token;
        add(ids, parent, segmentKey(group.index, completion + 1));
        const value = offsets[first + completion];
        if (read === 'reward') readAt(token - 1, 0, value);
        else for (let t = 1; t < ids.length; t++) readAt(start + t - 1, ids[t], value + t);
      };
      // The prompt's last row predicts the first token of each of its children.
      const root = (from: number, to: number): number => {
        const parent = add(group.prompt, -1, segmentKey(group.index, 0));
        if (read === 'logps')
          for (let c = from; c < to; c++) readAt(token - 1, group.completions[c][0], offsets[first + c]);
        return parent;
      };
      const count = group.completions.length;
      const shared = sharePrompts ? root(0, count) : -1;
      for (let c = 0; c < count; c++) branch(c, sharePrompts ? shared : root(c, c + 1));
    });
  }
  return { groups, policies, native, offsets, readouts, groupOffsets };
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
export function toCompletions(p: Pack, readouts: Float32Array): Float32Array {
  return Float32Array.from(p.readouts, (r) => readouts[r]);
}

/** Values by completion → readouts, the way back of `toCompletions`. */
export function toReadouts(p: Pack, values: Float32Array): Float32Array {
  const out = new Float32Array(values.length);
  p.readouts.forEach((r, i) => {
    out[r] = values[i];
  });
  return out;
}
