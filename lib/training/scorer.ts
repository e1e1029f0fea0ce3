import type { Bank } from '../adapters/bank.js';
import { type Pack, pack, splitByTokens } from '../data/pack.js';
import type { Group } from '../data/types.js';
import type { Model } from '../model/model.js';
import type { Objective, Scores } from './objective.js';

/** A policy to score with: an adapter of a bank on a model, or the model alone. */
export interface Scorer {
  model: Model;
  bank: Bank | null;
  /** -1: the base. */
  adapter: number;
}

/** The fixed policy that a loss compares with. With `cache` a group is scored when it is first met, and once. */
export class Reference {
  readonly #kept = new WeakMap<Group, Float64Array>();

  constructor(
    readonly scorer: Scorer,
    readonly cache: boolean,
    readonly maxTokens: number,
  ) {}

  /** Log-probability of every completion, group by group. */
  async sums(groups: readonly Group[], objective: Objective, abort?: Int32Array): Promise<Float64Array> {
    const missing = groups.filter((g) => !this.#kept.has(g));
    const fresh = new Map<Group, Float64Array>();
    for (const run of splitByTokens(missing, 1, this.maxTokens)) {
      const { model, bank, adapter } = this.scorer;
      const p = pack(run, { policies: [{ adapter, grad: false }], read: 'logps' });
      const { values } = await model.score(p, bank, 'logps', { abort });
      const sums = objective.sums(run, values, p.offsets);
      run.forEach((g, i) => {
        fresh.set(g, sums.slice(p.groupOffsets[i], p.groupOffsets[i + 1]));
      });
    }
    if (this.cache) for (const [g, sums] of fresh) this.#kept.set(g, sums);
    return Float64Array.from(groups.flatMap((g) => [...(fresh.get(g) ?? this.#kept.get(g)!)]));
  }
}

export interface ScoreGroupsOptions {
  keep?: boolean;
  checkpoint?: boolean;
  dropoutSeed?: number;
  abort?: Int32Array;
}

/** Scores groups in one pack under the policy, with the reference's scores where the objective needs them. */
export async function scoreGroups(
  groups: readonly Group[],
  objective: Objective,
  policy: Scorer,
  reference: Reference | null,
  options: ScoreGroupsOptions = {},
): Promise<{ scores: Scores; pack: Pack }> {
  const { keep = false, ...rest } = options;
  const p = pack(groups, { policies: [{ adapter: policy.adapter, grad: keep }], read: objective.read });
  const { values, squares } = await policy.model.score(p, policy.bank, objective.read, {
    ...rest,
    keep,
    squares: objective.squares,
  });
  const scores: Scores = { groups, groupOffsets: p.groupOffsets, offsets: p.offsets, values, squares };
  if (reference) scores.reference = await reference.sums(groups, objective, options.abort);
  return { scores, pack: p };
}

/** Scores of several lists of groups as one. */
export function joinScores(parts: readonly Scores[]): Scores {
  const join = (offsets: (s: Scores) => Int32Array): Int32Array => {
    const out = [0];
    for (const part of parts) {
      const base = out[out.length - 1];
      for (const end of offsets(part).subarray(1)) out.push(base + end);
    }
    return Int32Array.from(out);
  };
  const floats = (of: (s: Scores) => Float32Array) => Float32Array.from(parts.flatMap((s) => [...of(s)]));
  return {
    groups: parts.flatMap((s) => s.groups),
    groupOffsets: join((s) => s.groupOffsets),
    offsets: join((s) => s.offsets),
    values: floats((s) => s.values),
    squares: parts[0]?.squares && floats((s) => s.squares!),
    reference: parts[0]?.reference && Float64Array.from(parts.flatMap((s) => [...s.reference!])),
  };
}
