import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { Bank } from '../adapters/bank.js';
import { AdapterPopulation } from '../adapters/population.js';
import { isMixture, readMixture } from '../aggregation/mixture-file.js';
import { loadConfig, type ResolvedLoss, resolveLoss, runConfigPath } from '../config/index.js';
import { groupsOf, readRows, tokenNotes } from '../data/index.js';
import type { Group } from '../data/types.js';
import { mergeWeights } from '../merge/methods.js';
import { type LoadOptions, Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { requireRun } from '../training/run-folder.js';
import { populationPath } from '../training/save.js';
import type { Mixture, Scorer } from '../training/scorer.js';
import { referenceOf } from '../training/setup.js';
import type { Stop } from '../training/signals.js';
import { type Ties, tieSettingsOf } from '../training/ties.js';

/** What `score`, `eval` and `generate` are given: a model with adapters, or a run, which knows its own. */
export interface PolicyOptions extends LoadOptions {
  /** A folder or `hf:owner/name`; this or `run`. */
  model?: string;
  run?: string;
  adapters?: { name: string; dir: string }[];
  /** Policies that are mixes of the adapters, by name: Σ w ΔW, not merged. */
  mixes?: { name: string; weights: Readonly<Record<string, number>> }[];
  /** ABORTED is thrown soon after it. */
  stop?: Stop;
}

export interface Policy {
  name: string;
  /** Index in the bank; -1: the base, or a mixture. */
  adapter: number;
  mixture: Mixture | null;
  /** Folder of its files; null: the base. */
  dir: string | null;
  /** It has a reward head. */
  reward: boolean;
  /** Everyone's adapters, where each row is to be judged by its annotator's; `adapter` is the generic one. */
  voters?: AdapterPopulation;
}

export interface Policies {
  model: Model;
  bank: Bank | null;
  /** The base first (unless it is a reward model's bare decoder), then the adapters as given. */
  policies: Policy[];
  /** β of the run's loss, or its default. */
  beta: number;
  /** What implicit rewards compare with: `base` (of `model`), or the folder that the run named. */
  reference: string;
  ties: Ties;
  /** Other wishes' rewards that are taken out of implicit rewards (MODPO). */
  modpo: ResolvedLoss['modpo'];
}

export interface RunPolicies {
  model: string;
  adapters: { name: string; dir: string }[];
  beta: number;
  reference: string;
  ties: Ties;
  modpo: ResolvedLoss['modpo'];
  voters: AdapterPopulation | null;
}

/** What a run speaks with. Throws `NOT_FOUND` where it is not finished. */
export async function ofRun(run: string): Promise<RunPolicies> {
  await requireRun(run);
  const config = loadConfig(runConfigPath(run));
  const full = config.adapter === 'full';
  const name = full ? 'model' : config.method === 'soups' ? 'experts' : 'adapter';
  const dir = join(run, name);
  if (!existsSync(dir))
    throw new PluralignError(
      'NOT_FOUND',
      `${run} has no ${name} yet: the run is not finished; go on with train --resume`,
    );
  const { beta, modpo } = config.loss;
  const ties = tieSettingsOf(run, config);
  let reference = referenceOf(config);
  if (config.method === 'soups')
    return { model: config.model!, adapters: expertsOf(dir), beta, reference, ties, modpo, voters: null };
  if (!full) {
    const population = populationPath(run);
    if (!existsSync(population))
      return { model: config.model!, adapters: adaptersOf(dir), beta, reference, ties, modpo, voters: null };
    const voters = AdapterPopulation.open(population);
    return { model: config.model!, adapters: [{ name: 'generic', dir }], beta, reference, ties, modpo, voters };
  }
  // Where all weights were trained, the base is the model that training started from.
  if (reference === 'base' && config.method === 'dpo') reference = config.model!;
  return { model: dir, adapters: [], beta, reference, ties, modpo, voters: null };
}

/** A PEFT folder, or a folder of them, in the order of their names (`type_2` before `type_10`). */
function adaptersOf(dir: string): { name: string; dir: string }[] {
  if (existsSync(join(dir, 'adapter_config.json'))) return [{ name: 'adapter', dir }];
  return readdirSync(dir)
    .filter((name) => existsSync(join(dir, name, 'adapter_config.json')))
    .sort((a, b) => a.localeCompare(b, 'en', { numeric: true }))
    .map((name) => ({ name, dir: join(dir, name) }));
}

/** The experts of a run of soups, each in a run folder of its own. */
function expertsOf(dir: string): { name: string; dir: string }[] {
  return readdirSync(dir)
    .filter((name) => existsSync(join(dir, name, 'adapter', 'adapter_config.json')))
    .map((name) => ({ name, dir: join(dir, name, 'adapter') }));
}

/** Loads a model and its adapters into one bank. Throws what loading them throws. */
export async function openPolicies(options: PolicyOptions): Promise<Policies> {
  if ((options.model === undefined) === (options.run === undefined))
    throw new PluralignError('BAD_ARGUMENT', 'expected a model or a run, and not both');
  const run = options.run === undefined ? null : await ofRun(options.run);
  const adapters = [...(run?.adapters ?? []), ...(options.adapters ?? [])];
  const model = await Model.load(run?.model ?? options.model!, options);
  const plain = resolveLoss({}, 'dpo');
  const { beta, reference } = run ?? plain;
  const ties: Ties = run?.ties ?? plain;
  const head = model.rewardHead();
  if (adapters.length === 0 && head) {
    const bank = Bank.full([], () => new Float32Array(), { rewardHead: { hiddenSize: head.length, seed: 0 } });
    bank.values(bank.adapters[0].head).set(head);
    return {
      model,
      bank,
      policies: [{ name: 'base', adapter: 0, mixture: null, dir: model.dir, reward: true }],
      beta,
      reference,
      ties,
      modpo: null,
    };
  }
  const sources: { name: string; dir: string }[] = [];
  const policies = adapters.map(({ name, dir }): Policy => {
    if (!isMixture(dir)) {
      sources.push({ name, dir });
      return { name, adapter: sources.length - 1, mixture: null, dir, reward: false };
    }
    const parts = readMixture(dir);
    const first = sources.length;
    for (const part of parts) sources.push({ name: `${name}/${part.name}`, dir: part.dir });
    const mixture = { adapters: parts.map((_, k) => first + k), weights: parts.map((part) => part.weight) };
    return { name, adapter: -1, mixture, dir, reward: false };
  });
  const mixes = (options.mixes ?? []).map(({ name, weights }, i) => {
    const mixture = policies.find((p) => p.mixture !== null);
    if (mixture) throw new PluralignError('BAD_ARGUMENT', `${mixture.name} is a mixture already and cannot be mixed`);
    const names = sources.map((source) => source.name);
    policies.push({ name, adapter: sources.length + i, mixture: null, dir: null, reward: false });
    return { name, weights: mergeWeights(names, weights) };
  });
  const bank = sources.length > 0 ? await Bank.fromPeft(model.shape, sources, mixes) : null;
  for (const policy of policies) policy.reward = policy.adapter !== -1 && bank!.adapters[policy.adapter].head !== -1;
  const classifier = policies.flatMap((p) => p.mixture?.adapters ?? []).find((a) => bank!.adapters[a].head !== -1);
  if (classifier !== undefined)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${sources[classifier].dir} is a reward model, which cannot speak in a mixture`,
    );
  if (run?.voters) {
    const generic = policies.findIndex((p) => p.name === 'generic');
    policies.splice(generic + 1, 0, { ...policies[generic], name: 'adapter', voters: run.voters });
  }
  if (policies.length === 0 || policies.some((p) => !p.reward))
    policies.unshift({ name: 'base', adapter: -1, mixture: null, dir: null, reward: false });
  return { model, bank, policies, beta, reference, ties, modpo: run?.modpo ?? null };
}

/** A policy to score rows with; annotators' adapters are read for the rows' annotators. */
export function scorerOf(
  { voters, adapter, mixture }: Policy,
  { model, bank }: Pick<Policies, 'model' | 'bank'>,
  groups: readonly Group[],
): Scorer {
  if (!voters) return { model, bank, adapter, mixture };
  const named = groups.flatMap(({ annotator }) => (annotator === undefined ? [] : [annotator]));
  const { bank: own, known } = voters.bank(model.shape, named);
  const index = new Map(known.map((name, i) => [name, i + 1]));
  return { model, bank: own, adapter: ({ annotator }) => (annotator && index.get(annotator)) || 0 };
}

/** The base without any adapter. */
export function isBase(policy: Policy): boolean {
  return policy.adapter === -1 && policy.mixture === null;
}

/** The adapters that a policy speaks with; -1: the base. */
export function speakersOf(policy: Policy): readonly number[] {
  return policy.mixture?.adapters ?? [policy.adapter];
}

/** Rows as token groups. An over-length row is an error, since results stand in the order of rows. */
export async function openRows(
  data: readonly string[],
  model: Model,
  options: { overLength: 'error' | 'drop'; signal?: AbortSignal; note?: (text: string) => void },
): Promise<Group[]> {
  const { rows } = await readRows(data, { signal: options.signal, ties: true });
  const { maxPositions } = model.config;
  const { groups, report } = await groupsOf(rows, model.tokenizer, {
    maxLength: maxPositions,
    overLength: options.overLength,
    signal: options.signal,
  });
  for (const text of tokenNotes(report, maxPositions)) options.note?.(text);
  return groups;
}
