import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Bank } from '../adapters/bank.js';
import { AdapterPopulation } from '../adapters/population.js';
import { genericAdapter } from '../adapters/voters.js';
import { loadConfig, runConfigPath } from '../config/index.js';
import type { ResolvedRewardTerm } from '../config/rollout-schema.js';
import { pack, splitByTokens } from '../data/pack.js';
import type { Group } from '../data/types.js';
import { sumTokens } from '../losses/index.js';
import type { Model } from '../model/model.js';
import { safetensorsInfo } from '../model/safetensors.js';
import { PluralignError } from '../native/errors.js';
import { packUnder } from '../training/scorer.js';
import type { RewardFunction, Sample } from './types.js';

interface ModelOptions {
  maxTokens: number;
  abort?: Int32Array;
}

type Term = Pick<ResolvedRewardTerm, 'adapter' | 'annotator' | 'per' | 'lower'>;

/** Samples as groups of one completion, who is named included. */
const groupsOf = (samples: readonly Sample[]): Group[] =>
  samples.map(({ promptIds, ids, annotator }, index) => ({
    index,
    kind: 'text',
    prompt: promptIds,
    completions: [ids],
    weight: 1,
    origin: { file: 'samples', line: index + 1 },
    ...(annotator !== undefined && { annotator }),
  }));

/**
 * A reward model of this project on the policy's base: an adapter with a head, a run with an adapter for each annotator, or
 * a run of rewards on features that `embed` made with this base. Throws `NOT_FOUND`, `BAD_CONFIG`, `BAD_SHAPE`.
 */
export async function modelReward(term: Term, model: Model, options: ModelOptions): Promise<RewardFunction> {
  const dir = term.adapter!;
  const config = existsSync(runConfigPath(dir)) ? loadConfig(runConfigPath(dir)) : null;
  if (config?.model === 'features') return onFeatures(term, model, options);
  if (term.lower !== null)
    throw new PluralignError(
      'BAD_CONFIG',
      `rewards: lower needs a run of rewards on features (model: features), which keeps what votes leave open; ${dir} is none`,
    );
  const { bank, index } = await speakers(dir, term, model);
  if (bank.adapters[0].head === -1)
    throw new PluralignError('BAD_CONFIG', `rewards: ${dir} has no reward head; train it with method: reward`);
  const adapter = ({ annotator }: Group) => index.get(term.annotator ?? annotator ?? '') ?? 0;
  return async (samples) => {
    const out: number[] = [];
    for (const run of splitByTokens(groupsOf(samples), 1, options.maxTokens)) {
      const p = packUnder(run, adapter, { grad: false, read: 'reward' });
      out.push(...(await model.score(p, bank, 'reward', { abort: options.abort })).values);
    }
    return out;
  };
}

/** A bank with whoever judges, and the adapter of each annotator; whoever is not in it is judged by the first. */
async function speakers(
  dir: string,
  { annotator, per }: Term,
  model: Model,
): Promise<{ bank: Bank; index: ReadonlyMap<string, number> }> {
  if (annotator === null && per === 'all')
    return {
      bank: await Bank.fromPeft(model.shape, [{ name: genericAdapter, dir, trainable: false }]),
      index: new Map(),
    };
  const path = join(dir, 'population.safetensors');
  if (!existsSync(path))
    throw new PluralignError(
      'NOT_FOUND',
      `rewards: ${path} is not there; expected a run with an adapter for each annotator`,
    );
  const population = AdapterPopulation.open(path);
  if (annotator !== null && !population.index.has(annotator))
    throw new PluralignError('NOT_FOUND', `rewards: ${path} has no annotator ${JSON.stringify(annotator)}`);
  const { bank, known } = population.bank(model.shape, annotator === null ? population.annotators : [annotator]);
  return { bank, index: new Map(known.map((name, i) => [name, i + 1])) };
}

/**
 * r_u(y) of a run of rewards on features, y's features being the base's own hidden rows, pooled as the items' were. With
 * `lower` less so many standard deviations of r_u(y) − r_u(mean item), by the voter's posterior: what the votes do not tell
 * counts against an answer. Whoever the run does not know gets the generic reward.
 */
async function onFeatures(term: Term, model: Model, options: ModelOptions): Promise<RewardFunction> {
  const run = term.adapter!;
  const { openFeatureRun } = await import('../features/run.js');
  const { poolHidden } = await import('../features/embed.js');
  const { pessimistic } = await import('../features/pessimism.js');
  const { config, population, table } = await openFeatureRun(run);
  const items = config.data.items as string;
  const pooling = items.endsWith('.safetensors') ? safetensorsInfo(items).metadata.pooling : undefined;
  if (pooling !== 'mean' && pooling !== 'last')
    throw new PluralignError(
      'BAD_CONFIG',
      `rewards: the items of ${run}, ${items}, were not made by pluralign embed: features of new answers are not known`,
    );
  const d = model.shape.hiddenSize;
  if (table.d !== d)
    throw new PluralignError(
      'BAD_SHAPE',
      `rewards: ${run} has ${table.d} features an item, the model hidden rows of ${d}; are its items of another model?`,
    );
  if (term.annotator !== null && !population.index.has(term.annotator))
    throw new PluralignError('NOT_FOUND', `rewards: ${run} has no annotator ${JSON.stringify(term.annotator)}`);
  const rewardOf = pessimistic(population, table, term.lower ?? 0);
  return async (samples) => {
    const features = new Float32Array(samples.length * d);
    let done = 0;
    for (const part of splitByTokens(groupsOf(samples), 1, options.maxTokens)) {
      await poolHidden(model, part, pooling, features.subarray(done * d, (done + part.length) * d), options.abort);
      done += part.length;
    }
    const of = rewardOf({ features, n: samples.length, d });
    const named = ({ annotator }: Sample) => (term.per === 'annotator' ? annotator : (term.annotator ?? undefined));
    return samples.map((sample, i) => of(population.index.get(named(sample) ?? '') ?? -1, i));
  };
}

/**
 * The implicit reward of a policy that was trained on preferences (Rafailov et al. 2023, eq. 5), without its β:
 * Σ_t log π(y_t) − log π_base(y_t).
 */
export async function policyReward(dir: string, model: Model, options: ModelOptions): Promise<RewardFunction> {
  const { bank } = await speakers(dir, { adapter: dir, annotator: null, per: 'all', lower: null }, model);
  if (bank.adapters[0].head !== -1)
    throw new PluralignError('BAD_CONFIG', `rewards: ${dir} is a reward model, not a policy; type: model takes it`);
  return async (samples) => {
    const out: number[] = [];
    for (const run of splitByTokens(groupsOf(samples), 2, options.maxTokens)) {
      const policies = [0, -1].map((adapter) => ({ adapter, grad: false }));
      const p = pack(run, { policies, read: 'logps' });
      const sums = sumTokens((await model.score(p, bank, 'logps', { abort: options.abort })).values, p.offsets);
      for (let i = 0; i < run.length; i++) out.push(sums[i] - sums[run.length + i]);
    }
    return out;
  };
}
