import type { Bank } from '../../adapters/bank.js';
import {
  byPolicy,
  type Forest,
  leastMerged,
  mergeLimit,
  pack,
  packTrees,
  type Tree,
  tokensOf,
} from '../../data/pack.js';
import { passesOf } from '../../data/passes.js';
import type { Group } from '../../data/types.js';
import type { MethodObjective } from '../../methods/index.js';
import type { Scores } from '../../methods/objective.js';
import type { Model } from '../../model/model.js';
import { PluralignError } from '../../native/errors.js';
import { type Reference, runsOf } from '../../training/scorer.js';
import { namedRows } from '../../training/step.js';
import { type TypedVote, voteLossOf } from '../outcome.js';
import { inPlaces, stagesOf } from './votes.js';

export interface TypePoliciesOptions {
  model: Model;
  /** One adapter for each type. */
  bank: Bank;
  types: number;
  objective: MethodObjective;
  /** Null for reward models. */
  reference: Reference | null;
  /** Reward of a completion: β × (log π − log π_ref); 1 × the head's value for reward models. */
  beta: number;
  /** Rankings are choices of the best. */
  best: boolean;
  /** Bradley–Terry margin of pairs whose row has none of its own; null: rows' margins do not count. */
  margin: number | null;
  /** Tokens of a pass. */
  maxTokens: number;
  abort?: Int32Array;
}

export interface MStepBatch {
  groups: readonly Group[];
  /** Responsibility of each type for each row of the batch, K arrays [groups]. */
  gamma: readonly ArrayLike<number>[];
  /** Rows below it are left out for a type. */
  skipBelow: number;
  /** Score rows that are left out too, without a gradient: the batch then says what every type thinks of it. */
  scoreAll: boolean;
  /** Each type's share of all rows, [K]; a type's loss is a mean over its own rows' expected number in a batch. */
  shares: ArrayLike<number>;
  checkpoint: boolean;
  dropoutSeed: number;
}

export interface MStepGradient {
  /** Σ_k Σ_j γ_k w l / Σ_j w: minus the expected log-likelihood of a row, with types known. */
  loss: number;
  /** Loss of each type, a mean over its rows; NaN for a type without rows in the batch. */
  typeLosses: number[];
  /** Share of ordered pairs ordered right by each type, weighted by responsibility. */
  accuracies: number[];
  /** Types that have a gradient. */
  active: number[];
  /** Rows as every type sees them; with `scoreAll` all types, else null where a type left the row out. */
  rewards: (Float64Array | null)[][];
  tokens: number;
}

/** Policies (or reward models) of K types on one base: adapters of one bank, whose rows stand type by type in the passes. */
export class TypePolicies {
  constructor(readonly options: TypePoliciesOptions) {}

  get types(): number {
    return this.options.types;
  }

  /** Rewards of every row under every type, nothing kept. */
  async votes(groups: readonly Group[], onProgress?: (done: number) => void): Promise<TypedVote[]> {
    const { model, bank, types, objective, maxTokens, best, abort } = this.options;
    const out: TypedVote[] = [];
    for (const some of runsOf(groups, 0, maxTokens)) {
      const against = await this.#references(some);
      const rewards = some.map(() => new Array<Float64Array>(types));
      // A pass for each type: all its rows on one adapter, equal prompts together.
      for (let type = 0; type < types; type++) {
        const p = pack(some, { policies: [{ adapter: type, grad: false }], read: objective.read, merge: true });
        const { values } = await model.score(p, bank, objective.read, { abort });
        const sums = objective.sums(some, values, p.offsets);
        some.forEach((group, g) => {
          rewards[g][type] = this.#rewards(group, sums.subarray(p.groupOffsets[g], p.groupOffsets[g + 1]), against);
        });
      }
      some.forEach((group, g) => {
        checkRewards(group, rewards[g]);
        out.push({ group, rewards: rewards[g], stages: stagesOf(group, best) });
      });
      onProgress?.(out.length);
    }
    return out;
  }

  /** log p_k(V_j) of a row under each type, times the row's weight. */
  logLikelihood(group: Group, rewards: Float64Array): number {
    if (group.weight === 0) return 0;
    const { margin, best } = this.options;
    const ahead = margin === null || group.kind !== 'pair' ? 0 : (group.margin ?? margin);
    return -group.weight * voteLossOf(rewards, stagesOf(group, best), ahead);
  }

  /** Score → loss → backward of an M-step's batch: the bank's gradients grow by those of every type's weighted loss. */
  async gradient(batch: MStepBatch): Promise<MStepGradient> {
    const { types, objective } = this.options;
    const { groups } = batch;
    const weight = objective.totals(groups).weight;
    const sums = { loss: new Float64Array(types), right: new Float64Array(types), gamma: new Float64Array(types) };
    const out: MStepGradient = {
      loss: 0,
      typeLosses: [],
      accuracies: [],
      active: [],
      rewards: groups.map(() => new Array<Float64Array | null>(types).fill(null)),
      tokens: 0,
    };
    const active = new Set<number>();
    const trees = this.#trees(batch);
    const against = await this.#references([...new Set(trees.map((tree) => tree.group))]);
    const merge = !(batch.dropoutSeed && this.options.bank.drops);
    for (const pass of passesOf(byPolicy(trees), this.options.maxTokens, merge && leastMerged(this.options.model)))
      await this.#pass(pass, { ...batch, against, merge, weight }, sums, active, out);
    for (let k = 0; k < types; k++) {
      out.loss += sums.loss[k] * batch.shares[k];
      out.typeLosses.push(sums.gamma[k] > 0 ? (sums.loss[k] * batch.shares[k] * weight) / sums.gamma[k] : Number.NaN);
      out.accuracies.push(sums.gamma[k] > 0 ? sums.right[k] / sums.gamma[k] : Number.NaN);
    }
    out.active = [...active].sort((a, b) => a - b);
    return out;
  }

  /** Who scores what: a row under the types that train on it, or under all. */
  #trees({ groups, gamma, skipBelow, scoreAll }: MStepBatch): MStepTree[] {
    return groups.flatMap((group, row) =>
      Array.from({ length: this.types }, (_, adapter) => {
        const grad = gamma[adapter][row] > 0 && gamma[adapter][row] >= skipBelow && group.weight > 0;
        return { group, row, adapter, grad };
      }).filter(({ grad }) => grad || scoreAll),
    );
  }

  async #pass(
    trees: readonly MStepTree[],
    batch: MStepBatch & { against: Against; merge: boolean; weight: number },
    sums: { loss: Float64Array; right: Float64Array; gamma: Float64Array },
    active: Set<number>,
    out: MStepGradient,
  ): Promise<void> {
    const { model, bank, types, objective, abort } = this.options;
    const { gamma, shares, checkpoint, dropoutSeed, weight } = batch;
    const groups = trees.map((tree) => tree.group);
    const forest = packTrees(trees, { read: objective.read, merge: batch.merge && mergeLimit(trees, model) });
    const keep = trees[0].grad;
    const { values } = await model.score(forest, bank, objective.read, { keep, checkpoint, dropoutSeed, abort });
    for (const group of groups) out.tokens += tokensOf(group);
    const logps = objective.sums(groups, values, forest.offsets);
    trees.forEach(({ group, row, adapter }, t) => {
      const own = logps.subarray(forest.treeOffsets[t], forest.treeOffsets[t + 1]);
      out.rewards[row][adapter] = this.#rewards(group, own, batch.against);
    });
    if (!keep) return;
    const against = batch.against && Float64Array.from(groups.flatMap((group) => [...batch.against!.get(group)!]));
    const gradient = new Float32Array(values.length);
    for (let type = 0; type < types; type++) {
      const from = trees.findIndex((tree) => tree.grad && tree.adapter === type);
      if (from < 0) continue;
      let to = from;
      while (to < trees.length && trees[to].grad && trees[to].adapter === type) to++;
      const part = slice(forest, from, to, values, against, (t) => gamma[type][trees[t].row]);
      const outcome = objective.loss(part, { weight: weight * Math.max(shares[type], 1e-12), tokens: 1 }, true);
      checkFinite(part, outcome.loss, outcome.gradient, type);
      gradient.set(outcome.gradient, forest.offsets[forest.treeOffsets[from]]);
      active.add(type);
      sums.loss[type] += outcome.loss;
      for (const row of outcome.rows) {
        sums.right[type] += row.group.weight * row.accuracy;
        sums.gamma[type] += row.group.weight;
      }
    }
    await model.backward(forest, bank, gradient, abort);
  }

  /** Rewards of a row's completions, in its places, from the log-probabilities of a policy. */
  #rewards(group: Group, logps: Float64Array, against: Against): Float64Array {
    const reference = against?.get(group);
    return inPlaces(
      group,
      logps.map((s, c) => this.options.beta * (s - (reference ? reference[c] : 0))),
    );
  }

  /** What each row is compared with; a row is scored once, whatever types want it. */
  async #references(groups: readonly Group[]): Promise<Against> {
    const { reference, objective, abort } = this.options;
    if (!reference) return null;
    const sums = await reference.sums(groups, objective, abort);
    const out = new Map<Group, Float64Array>();
    let at = 0;
    for (const group of groups) {
      out.set(group, sums.subarray(at, at + group.completions.length));
      at += group.completions.length;
    }
    return out;
  }
}

/** Log-probabilities of each row's completions under the reference; null for reward models. */
type Against = ReadonlyMap<Group, Float64Array> | null;

interface MStepTree extends Tree {
  /** Its place in the batch. */
  row: number;
}

/** Trees from … to of a forest as the objective takes them, rows weighted by responsibility. */
function slice(
  forest: Forest,
  from: number,
  to: number,
  values: Float32Array,
  reference: Float64Array | null,
  gamma: (tree: number) => number,
): Scores {
  const { treeOffsets, offsets, trees } = forest;
  const [firstCompletion, endCompletion] = [treeOffsets[from], treeOffsets[to]];
  const [first, end] = [offsets[firstCompletion], offsets[endCompletion]];
  const scores: Scores = {
    groups: trees.slice(from, to).map(({ group }, i): Group => ({ ...group, weight: group.weight * gamma(from + i) })),
    groupOffsets: treeOffsets.slice(from, to + 1).map((x) => x - firstCompletion),
    offsets: offsets.slice(firstCompletion, endCompletion + 1).map((x) => x - first),
    values: values.subarray(first, end),
  };
  if (reference) scores.reference = reference.subarray(firstCompletion, endCompletion);
  return scores;
}

function checkFinite(scores: Scores, loss: number, gradient: Float32Array, type: number): void {
  if (Number.isFinite(loss) && gradient.every(Number.isFinite)) return;
  throw new PluralignError(
    'NON_FINITE',
    `the loss of type ${type + 1} is ${loss}; rows ${namedRows(scores.groups)} are in the batch. No step was taken; ` +
      'lower the learning rate',
  );
}

function checkRewards(group: Group, rewards: readonly Float64Array[]): void {
  const bad = rewards.findIndex((own) => !own.every(Number.isFinite));
  if (bad < 0) return;
  throw new PluralignError(
    'NON_FINITE',
    `${group.origin.file}:${group.origin.line}: type ${bad + 1} gives a completion the reward ` +
      `${rewards[bad].find((r) => !Number.isFinite(r))}: its probability is 0 or its policy is broken; lower the learning rate`,
  );
}
