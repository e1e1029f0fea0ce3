import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import type { Bank } from '../adapters/bank.js';
import { AdapterPopulation } from '../adapters/population.js';
import { loadConfig, type ResolvedConfig, runConfigPath } from '../config/index.js';
import { groupsOf, readRows } from '../data/index.js';
import { packTokens } from '../data/pack.js';
import type { Group } from '../data/types.js';
import { badData } from '../data/where.js';
import { type PreferenceMetrics, summarise } from '../evaluation/preference.js';
import { objectiveOf } from '../methods/index.js';
import { type LoadOptions, Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { lockRun } from './lock.js';
import { progress } from './progress.js';
import { populationPath } from './save.js';
import type { Reference } from './scorer.js';
import { makeReference } from './setup.js';
import { type Stop, stopOf } from './signals.js';
import { evaluateGroups, lossStep } from './step.js';
import { tieSettingsOf } from './ties.js';

/** Where the model runs: what is not given is the run's own. */
export interface AdaptVotersOptions extends LoadOptions {
  run: string;
  votes: readonly string[];
  /** Fit annotators anew whom the run has; else they are refused. */
  replace?: boolean;
  /** Steps over all of an annotator's votes; default 20. */
  steps?: number;
  /** Default: the run's. */
  learningRate?: number;
  /** λ of λ/2 ‖own − generic‖² beside the sum of the votes' losses; default: the run's, or 1 where that is 0. */
  penalty?: number;
  stop?: Stop;
  quiet?: boolean;
  note?: (text: string) => void;
}

/** Of a new annotator’s votes. */
export type AdaptedMetrics = Omit<PreferenceMetrics, 'rows'>;

export interface AdaptVotersResult {
  run: string;
  /** Annotators in the run now. */
  population: number;
  /** By new annotator: how the fit describes the votes it was made of, and how the generic adapter does. */
  annotators: Record<
    string,
    { votes: number; steps: number; milliseconds: number; generic_accuracy: number } & AdaptedMetrics
  >;
  paths: { run: string; model: string };
}

interface Fit {
  model: Model;
  bank: Bank;
  config: ResolvedConfig;
  objective: ReturnType<typeof objectiveOf>;
  reference: Reference | null;
  abort: Int32Array;
}

function runsOn(config: ResolvedConfig, { dtype, device, threads }: LoadOptions): ResolvedConfig {
  const { train } = config;
  const own = { dtype: dtype ?? train.dtype, device: device ?? train.device, threads: threads ?? train.threads };
  return { ...config, train: { ...train, ...own } };
}

/**
 * Adds annotators to a run with an adapter for each: starts from the generic one and fits only what is theirs, with every
 * shared factor held fixed; then replaces the run's file in one step. The numbers of all others keep their bits, and a fit
 * depends on nobody else's votes.
 *
 * @throws PluralignError `BAD_DATA` for a row without annotator, and for an annotator whom the run has already (without
 * `replace`); `BAD_CONFIG` for a run without adapters by annotator; `BUSY` while another process writes in the run
 */
export async function adaptVoters(options: AdaptVotersOptions): Promise<AdaptVotersResult> {
  const dir = resolve(options.run);
  const config = runsOn(loadConfig(runConfigPath(dir)), options);
  const path = populationPath(dir);
  if (config.adapter === 'full' || config.adapter.per !== 'annotator')
    throw new PluralignError('BAD_CONFIG', `${dir}: expected a run with adapter.per: annotator (or model: features)`);
  if (config.rewards !== null)
    throw new PluralignError(
      'BAD_CONFIG',
      `${dir}: ${config.method} learns from rewards, and adapt fits a voter to votes; fit the voter's reward and train with it`,
    );
  if (!existsSync(path))
    throw new PluralignError('NOT_FOUND', `${path} is not there: the run is not finished; go on with train --resume`);
  const { signal, flag: abort } = stopOf(options.stop);
  const lock = await lockRun(dir);
  try {
    const population = AdapterPopulation.open(path);
    using model = await Model.load(config.model!, config.train);
    const groups = await readVotes(options, config, model, signal);
    const names = [...new Set(groups.map((g) => g.annotator!))].sort();
    const known = names.filter((name) => population.index.has(name));
    if (known.length > 0 && !options.replace)
      throw new PluralignError(
        'BAD_DATA',
        `${known.map((name) => JSON.stringify(name)).join(', ')}: in the run already; give --replace to fit them anew`,
      );
    const { bank } = population.bank(model.shape, [], names);
    bank.setTrainable(({ owner }) => owner > 0);
    // A voter's fit depends on nobody else's votes: no groups to be fair to, no statistics that run from one to the next.
    const loss = { ...config.loss, ...tieSettingsOf(dir, config), group_robust: null };
    const freshObjective = () => objectiveOf({ ...config, loss });
    const objective = freshObjective();
    objective.check(groups);
    const needed = objective.reference ? await makeReference(config, model) : null;
    using reference = needed;
    const fit: Fit = { model, bank, config, objective, reference, abort };
    const bar = progress(names.length, 'adapt', { quiet: options.quiet });
    const annotators: AdaptVotersResult['annotators'] = {};
    const added = new Map<string, Float32Array>();
    try {
      for (const [i, name] of names.entries()) {
        const votes = groups.filter((g) => g.annotator === name);
        annotators[name] = await fitOne({ ...fit, objective: freshObjective() }, i + 1, votes, options);
        added.set(name, bank.ownValues(i + 1));
        bar.update(i + 1);
      }
    } finally {
      bar.stop();
    }
    await population.saveWith(path, added);
    const count = AdapterPopulation.open(path).annotators.length;
    return { run: dir, population: count, annotators, paths: { run: dir, model: path } };
  } finally {
    await lock.release();
  }
}

async function readVotes(
  options: AdaptVotersOptions,
  config: ResolvedConfig,
  model: Model,
  signal: AbortSignal,
): Promise<Group[]> {
  const { rows } = await readRows(options.votes, { kinds: ['pair', 'ranking'], ties: true, signal });
  const nameless = rows.find((row) => row.annotator === undefined);
  if (nameless) throw badData(nameless.origin, 'field "annotator": found nothing, expected a name');
  const maxLength = Math.min(config.data.max_length ?? Number.POSITIVE_INFINITY, model.config.maxPositions);
  const { groups } = await groupsOf(rows, model.tokenizer, { maxLength, overLength: config.data.over_length, signal });
  const usable = config.loss.ties === 'drop' ? groups.filter((g) => !g.tie) : groups;
  if (usable.length < rows.length)
    options.note?.(`${rows.length - usable.length} votes are ties or too long and were left out`);
  if (usable.length === 0) throw new PluralignError('BAD_DATA', `${options.votes.join(', ')}: no vote can be used`);
  return usable;
}

/** Full-batch AdamW on one annotator's own factors. */
async function fitOne(
  { model, bank, config, objective, reference, abort }: Fit,
  adapter: number,
  votes: readonly Group[],
  options: AdaptVotersOptions,
): Promise<AdaptVotersResult['annotators'][string]> {
  const { train } = config;
  const { steps = 20, learningRate = train.learning_rate } = options;
  const penalty = options.penalty ?? ((config.adapter as { penalty: number }).penalty || 1);
  const settings = { maxTokens: packTokens(train), abort };
  const judge = async (index: number) => {
    const { rows } = await evaluateGroups(votes, objective, { model, bank, adapter: index }, reference, settings);
    return summarise(rows).overall;
  };
  const started = performance.now();
  const weight = objective.totals(votes).weight;
  for (let step = 0; step < steps; step++) {
    bank.zeroGrad([adapter]);
    const policy = { model, bank, adapter };
    await lossStep(votes, objective, policy, reference, { ...settings, checkpoint: false, dropoutSeed: 0 });
    bank.own(adapter).forEach((factor, k) => {
      const generic = bank.values(bank.own(0)[k]);
      const gradient = bank.gradient(factor);
      bank.values(factor).forEach((x, i) => {
        gradient[i] += (penalty * (x - generic[i])) / weight;
      });
    });
    await bank.step({
      learningRate,
      beta1: train.beta1,
      beta2: train.beta2,
      eps: train.eps,
      weightDecay: train.weight_decay,
      maxGradNorm: train.max_grad_norm,
      active: [adapter],
    });
  }
  const milliseconds = performance.now() - started;
  const { rows, accuracy, margin, log_likelihood } = await judge(adapter);
  const generic = await judge(0);
  return { votes: rows, steps, milliseconds, accuracy, margin, log_likelihood, generic_accuracy: generic.accuracy };
}
