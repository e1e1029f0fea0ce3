import type { Bank } from '../adapters/bank.js';
import { mixtureLogp } from '../aggregation/mixture-file.js';
import { type Forest, mergeLimit, pack, packTrees, type Tree } from '../data/pack.js';
import { passesOf } from '../data/passes.js';
import type { Group } from '../data/types.js';
import type { Objective, Scores } from '../methods/objective.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import type { ReferenceStore } from './reference-store.js';

/** An adapter's index in a bank (-1: the base), or each group's own. */
export type AdapterChoice = number | ((group: Group) => number);

/** A policy to score with: adapters of a bank on a model, or the model alone. */
export interface Scorer {
  model: Model;
  bank: Bank | null;
  adapter: AdapterChoice;
  /** In place of `adapter`: each sequence is spoken by one of several adapters, drawn by these shares. */
  mixture?: Mixture | null;
}

/** A sequence-level mixture of adapters, [K] each. */
export interface Mixture {
  adapters: readonly number[];
  weights: readonly number[];
}

/** The adapter of each group. */
export function adaptersOf(groups: readonly Group[], adapter: AdapterChoice): number[] {
  return groups.map((group) => (typeof adapter === 'number' ? adapter : adapter(group)));
}

/** Groups in passes, each under its adapter; `merge`: as `passesOf` takes it. */
export function runsOf(
  groups: readonly Group[],
  adapter: AdapterChoice,
  maxTokens: number,
  merge: boolean | number = true,
): Group[][] {
  const adapters = adaptersOf(groups, adapter);
  const trees = groups.map((group, i) => ({ group, adapter: adapters[i], grad: false }));
  return passesOf(trees, maxTokens, merge).map((pass) => pass.map((tree) => tree.group));
}

/** Each group once, under its adapter. */
export function packUnder(
  groups: readonly Group[],
  adapter: AdapterChoice,
  options: { grad: boolean; read: 'logps' | 'reward' },
): Forest {
  const { grad, read } = options;
  const adapters = adaptersOf(groups, adapter);
  return packTrees(
    groups.map((group, i) => ({ group, adapter: adapters[i], grad })),
    { read, merge: !grad },
  );
}

/** What a loss compares with: log-probability of every completion, group by group. */
export interface Reference {
  sums(groups: readonly Group[], objective: Objective, abort?: Int32Array): Promise<Float64Array>;
}

/** Log-probabilities of 0: the policy's own are the scores. */
export const noReference: Reference = {
  sums: async (groups) => new Float64Array(groups.reduce((n, g) => n + g.completions.length, 0)),
};

/** The fixed policy that a loss compares with. With `cache` a group is scored when it is first met, and once; with a store, once for all runs. */
export class PolicyReference implements Reference, Disposable {
  readonly #kept = new WeakMap<Group, Float64Array>();

  constructor(
    readonly scorer: Scorer,
    readonly cache: boolean,
    readonly maxTokens: number,
    /** A model of its own, which goes with it. */
    readonly owned: Disposable | null = null,
    readonly store: ReferenceStore | null = null,
  ) {}

  [Symbol.dispose](): void {
    this.owned?.[Symbol.dispose]();
  }

  async sums(groups: readonly Group[], objective: Objective, abort?: Int32Array): Promise<Float64Array> {
    const fresh = new Map<Group, Float64Array>();
    const { model, bank, adapter } = this.scorer;
    for (const run of runsOf(this.missing(groups, objective), adapter, this.maxTokens)) {
      const p = packUnder(run, adapter, { grad: false, read: 'logps' });
      const { values } = await model.score(p, bank, 'logps', { abort });
      const sums = objective.sums(run, values, p.offsets);
      run.forEach((g, i) => {
        fresh.set(g, sums.slice(p.treeOffsets[i], p.treeOffsets[i + 1]));
      });
    }
    return this.learn(groups, objective, fresh);
  }

  /**
   * True where it is the base that the policy's adapters are on and threads take shares of packs: it may then stand in the
   * policy's own pack.
   */
  besides({ model, bank }: Pick<Scorer, 'model' | 'bank'>): boolean {
    const { model: own, adapter, mixture } = this.scorer;
    return own === model && adapter === -1 && !mixture && !bank?.replacesBase && model.sharesPacks;
  }

  /** The groups that must be scored. */
  missing(groups: readonly Group[], objective: Objective): Group[] {
    if (this.store)
      for (const g of groups) {
        const known = this.#kept.has(g) ? undefined : this.store.get(g, objective.summing);
        if (known) this.#kept.set(g, known);
      }
    return groups.filter((g) => !this.#kept.has(g));
  }

  /** Takes the sums of those that were missing and gives those of all. */
  async learn(groups: readonly Group[], objective: Objective, fresh: Map<Group, Float64Array>): Promise<Float64Array> {
    await this.store?.add(fresh, objective.summing);
    if (this.cache) for (const [g, sums] of fresh) this.#kept.set(g, sums);
    return Float64Array.from(groups.flatMap((g) => [...(fresh.get(g) ?? this.#kept.get(g)!)]));
  }
}

/** A gradient of the policy's values as a backward pass over `pack` takes it: nothing for the reference's, which come after. */
export function backwardGradient(p: Forest, gradient: Float32Array): Float32Array {
  if (gradient.length === p.readouts.length) return gradient;
  const out = new Float32Array(p.readouts.length);
  out.set(gradient);
  return out;
}

export interface ScoreGroupsOptions {
  keep?: boolean;
  checkpoint?: boolean;
  dropoutSeed?: number;
  abort?: Int32Array;
}

/**
 * Scores groups in one pack under the policy, with the reference's scores where the objective needs them: in the same pack
 * where it may stand there. A backward pass over `pack` takes what `backwardGradient` gives.
 */
export async function scoreGroups(
  groups: readonly Group[],
  objective: Objective,
  policy: Scorer,
  reference: Reference | null,
  options: ScoreGroupsOptions = {},
): Promise<{ scores: Scores; pack: Forest }> {
  const { keep = false, ...rest } = options;
  if (policy.mixture) return scoreMixture(groups, objective, policy, policy.mixture, reference, rest);
  const side = reference instanceof PolicyReference && reference.besides(policy) ? reference : null;
  const missing = side?.missing(groups, objective) ?? [];
  const adapters = adaptersOf(groups, policy.adapter);
  const trees: Tree[] = groups.map((group, i) => ({ group, adapter: adapters[i], grad: keep }));
  for (const group of missing) trees.push({ group, adapter: -1, grad: false });
  const drops = !!rest.dropoutSeed && policy.bank?.drops;
  const p = packTrees(trees, {
    read: objective.read,
    merge: drops ? false : mergeLimit(trees.slice(0, groups.length), policy.model),
  });
  const { values, squares } = await policy.model.score(p, policy.bank, objective.read, {
    ...rest,
    keep,
    squares: objective.squares,
  });
  const count = p.treeOffsets[groups.length];
  const end = p.offsets[count];
  const scores: Scores = {
    groups,
    groupOffsets: p.treeOffsets.subarray(0, groups.length + 1),
    offsets: p.offsets.subarray(0, count + 1),
    values: values.subarray(0, end),
    squares: squares?.subarray(0, end),
  };
  if (side) {
    const offsets = p.offsets.subarray(count).map((at) => at - end);
    const sums = objective.sums(missing, values.subarray(end), offsets);
    const fresh = new Map(
      missing.map((g, i) => {
        const [from, to] = [p.treeOffsets[groups.length + i] - count, p.treeOffsets[groups.length + i + 1] - count];
        return [g, sums.slice(from, to)];
      }),
    );
    scores.reference = await side.learn(groups, objective, fresh);
  } else if (reference) scores.reference = await reference.sums(groups, objective, options.abort);
  return { scores, pack: p };
}

/** Under a mixture a completion has one log-probability and its tokens have none, so each counts as one value. */
async function scoreMixture(
  groups: readonly Group[],
  objective: Objective,
  { model, bank }: Scorer,
  { adapters, weights }: Mixture,
  reference: Reference | null,
  options: Omit<ScoreGroupsOptions, 'keep'>,
): Promise<{ scores: Scores; pack: Forest }> {
  if (objective.read === 'reward')
    throw new PluralignError('BAD_ARGUMENT', 'a mixture of policies has log-probabilities, but no reward');
  const p = pack(groups, {
    policies: adapters.map((adapter) => ({ adapter, grad: false })),
    read: 'logps',
    merge: true,
  });
  const { values } = await model.score(p, bank, 'logps', options);
  const count = p.groupOffsets[groups.length];
  const offsets = p.offsets.subarray(0, count + 1);
  const each = adapters.map((_, k) => {
    const [from, to] = [p.offsets[k * count], p.offsets[(k + 1) * count]];
    return objective.sums(groups, values.subarray(from, to), offsets);
  });
  const scores: Scores = {
    groups,
    groupOffsets: p.groupOffsets,
    offsets: Int32Array.from({ length: count + 1 }, (_, c) => c),
    values: Float32Array.from({ length: count }, (_, c) =>
      mixtureLogp(
        each.map((sums) => sums[c]),
        weights,
      ),
    ),
  };
  if (reference) scores.reference = await reference.sums(groups, objective, options.abort);
  return { scores, pack: p };
}

/** Scores of several lists of groups as one. */
export function joinScores(parts: readonly Scores[]): Scores {
  if (parts.length === 1) return parts[0];
  const offsets = (of: (s: Scores) => Int32Array): Int32Array => {
    const out = new Int32Array(1 + parts.reduce((n, s) => n + of(s).length - 1, 0));
    let at = 0;
    for (const part of parts) {
      const base = out[at];
      for (const end of of(part).subarray(1)) out[++at] = base + end;
    }
    return out;
  };
  const values = <T extends Float32Array | Float64Array>(of: (s: Scores) => T, make: new (n: number) => T): T => {
    const out = new make(parts.reduce((n, s) => n + of(s).length, 0));
    let at = 0;
    for (const part of parts) {
      out.set(of(part), at);
      at += of(part).length;
    }
    return out;
  };
  return {
    groups: parts.flatMap((s) => s.groups),
    groupOffsets: offsets((s) => s.groupOffsets),
    offsets: offsets((s) => s.offsets),
    values: values((s) => s.values, Float32Array),
    squares: parts[0]?.squares && values((s) => s.squares!, Float32Array),
    reference: parts[0]?.reference && values((s) => s.reference!, Float64Array),
  };
}
