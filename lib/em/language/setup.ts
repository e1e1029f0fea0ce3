import { join } from 'node:path';
import type { Bank } from '../../adapters/bank.js';
import { Random } from '../../base/random.js';
import type { ResolvedConfig, ResolvedEm } from '../../config/schema.js';
import { packTokens } from '../../data/pack.js';
import type { Group } from '../../data/types.js';
import { type MethodObjective, objectiveOf } from '../../methods/index.js';
import type { Model } from '../../model/model.js';
import type { Reference } from '../../training/scorer.js';
import { makeBank } from '../../training/setup.js';
import { startFrom } from '../from-file.js';
import { type Annotators, annotatorsOf } from './annotators.js';
import { BankStart } from './bank.js';
import { Fit } from './fit.js';
import { TypePolicies, type TypePoliciesOptions } from './policies.js';
import { clusterStart, meanDifferences, randomStart, spectralStart } from './start.js';
import { type FitSize, WholeRun } from './whole.js';

export const typeName = (k: number): string => `type_${k + 1}`;

/** β of rewards, whether rankings are choices of the best, and margins of pairs, as the loss says. */
export function rewardScale({
  method,
  loss,
}: Pick<ResolvedConfig, 'method' | 'loss'>): Pick<TypePoliciesOptions, 'beta' | 'best' | 'margin'> {
  const policies = method === 'em-dpo';
  return {
    beta: policies ? loss.beta : 1,
    best: loss.type[0].type === 'best',
    margin: policies ? null : loss.margin,
  };
}

/** What the fits of a run share: model, reference, data, and how the run is to be heard and stopped. */
export interface Workshop {
  config: ResolvedConfig;
  model: Model;
  reference: Reference | null;
  rows: readonly Group[];
  annotators: Annotators;
  /** The run's folder. */
  dir: string;
  resume: boolean;
  quiet: boolean;
  abort?: Int32Array;
  note: (text: string) => void;
}

/** One fit: some types, a start, and whose votes. */
export interface FitPlan {
  types: number;
  start: number;
  /** What the fit is called in messages and in the run's folder; the main fit of a run has no folder of its own. */
  name: string | null;
  rows: readonly Group[];
  annotators: Annotators;
}

/** Makes fits and where they begin; embeddings are made once. */
export class Fits {
  readonly objective: MethodObjective;
  #bar: WholeRun | null = null;
  readonly #points = new Map<Annotators, Promise<Float64Array>>();

  constructor(readonly shop: Workshop) {
    this.objective = objectiveOf(shop.config);
    this.objective.check(shop.rows);
  }

  get em(): ResolvedEm {
    return this.shop.config.em!;
  }

  /** Says how much there will be to fit; before the first fit. */
  plan(sizes: readonly FitSize[]): void {
    const { config, quiet } = this.shop;
    this.#bar = new WholeRun(config.method, sizes, this.em, { quiet });
  }

  /** Ends the bar. */
  stop({ finished }: { finished: boolean }): void {
    if (finished) this.#bar?.complete();
    else this.#bar?.stop();
  }

  async open(plan: FitPlan): Promise<Fit> {
    const { shop, objective } = this;
    const { config, model } = shop;
    if (!this.#bar) this.plan([{ types: plan.types, rows: plan.rows.length }]);
    const names = Array.from({ length: plan.types }, (_, k) => typeName(k));
    const bank = await makeBank(config, model, names);
    return new Fit({
      config,
      policies: this.policies(bank, plan.types, objective),
      rows: plan.rows,
      annotators: plan.annotators,
      gamma: await this.#begin(plan),
      start: new BankStart(bank),
      dir: plan.name === null ? shop.dir : join(shop.dir, 'checkpoints', plan.name),
      resume: shop.resume,
      label: plan.name ?? config.method,
      bar: this.#bar!,
      abort: shop.abort,
      note: plan.name === null ? shop.note : (text) => shop.note(`${plan.name}: ${text}`),
    });
  }

  policies(bank: Bank, types: number, objective = this.objective): TypePolicies {
    const { config, model, reference, abort } = this.shop;
    const maxTokens = packTokens(config.train, { model });
    return new TypePolicies({
      model,
      bank,
      types,
      objective,
      reference: objective.reference ? reference : null,
      ...rewardScale(config),
      maxTokens,
      abort,
    });
  }

  /** Where EM starts. */
  async #begin({ types, start, rows, annotators }: FitPlan): Promise<Float64Array[]> {
    const count = annotators.names.length;
    const { init } = this.em;
    const random = new Random(this.shop.config.train.seed, 0xe3, start);
    if (types === 1) return [new Float64Array(count).fill(1)];
    if (init === 'random') return randomStart(count, types, random);
    if (init !== 'k-means' && init !== 'spectral') return startFrom(init, types, annotators.names);
    if (init === 'spectral')
      return spectralStart(rows, annotators, {
        types,
        best: rewardScale(this.shop.config).best,
        random,
        note: this.shop.note,
      });
    return clusterStart(await this.#differences(rows, annotators), count, types, random);
  }

  #differences(rows: readonly Group[], annotators: Annotators): Promise<Float64Array> {
    const { model, config, abort, quiet } = this.shop;
    const known = this.#points.get(annotators);
    if (known) return known;
    const maxTokens = packTokens(config.train, { model });
    const made = meanDifferences(model, rows, annotators, { maxTokens, abort, quiet });
    this.#points.set(annotators, made);
    return made;
  }
}

/** A part of the rows, and who gave them. */
export function subset(
  rows: readonly Group[],
  keep: (row: Group) => boolean,
): { rows: Group[]; annotators: Annotators } {
  const kept = rows.filter(keep);
  return { rows: kept, annotators: annotatorsOf(kept) };
}
