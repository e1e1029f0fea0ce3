import { join } from 'node:path';
import type { Bank } from '../adapters/bank.js';
import { voterAdapters } from '../adapters/voters.js';
import { type Config, type ResolvedConfig, resolveConfig } from '../config/index.js';
import { packTokens } from '../data/pack.js';
import type { Group } from '../data/types.js';
import { type Evaluation, summarise } from '../evaluation/preference.js';
import { type MethodObjective, objectiveOf } from '../methods/index.js';
import { isPolicyMethod } from '../methods/policies.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import type { RewardFunction } from '../rewards/types.js';
import { loadLatestCheckpoint, openCheckpoint, pruneCheckpoints } from './checkpoint.js';
import { evaluationLine, runSteps, type SteppedRun } from './loop.js';
import { totalSteps } from './order.js';
import { noteTo, progress } from './progress.js';
import { openRunFolder, type RunFolder } from './run-folder.js';
import { saveResult } from './save.js';
import { learningRateFactor } from './schedule.js';
import { type AdapterChoice, adaptersOf, type Reference, type Scorer } from './scorer.js';
import { adapterName, makeBank, makeReference, openModel, type PreparedData, prepareData } from './setup.js';
import type { SharedBase } from './shared-base.js';
import { type Stop, stopOf } from './signals.js';
import { fingerprint, freshState, loadState, type RunState, saveState } from './state.js';
import { evaluateGroups, lossStep, namedRows } from './step.js';
import { withTieNu } from './ties.js';
import { writeAdapterMap } from './voter-map.js';
import { annotatorsOf, checkNamed, Voters } from './voters.js';

export interface TrainOptions {
  /** Go on from the newest valid checkpoint of the run folder. */
  resume?: boolean;
  /** Stops within a step; the run is saved and can be resumed. ABORTED where it came before the first step. */
  stop?: Stop;
  /** No progress and no notes on stderr. */
  quiet?: boolean;
  /** Notes about data, checkpoints and stops; default: lines on stderr. */
  onNote?: (note: string) => void;
  /** What rewards of `type: function` mean, by name. */
  rewards?: Readonly<Record<string, RewardFunction>>;
  /** Mean and deviation that rewards are normalised by, by their names, in place of what samples of the reference say. */
  rewardScale?: Readonly<Record<string, { mean: number; deviation: number }>>;
  /**
   * Policies on own samples: the base that this run shares with others of its process, and who samples for all.
   * BAD_ARGUMENT for another method, and where it is not the configuration's model in its dtype.
   */
  beside?: SharedBase;
}

/** RUN/summary.json, and what `train --json` prints. */
export interface TrainSummary {
  method: string;
  steps: number;
  /** False where a stop signal ended the run early. */
  finished: boolean;
  seconds: number;
  train: Record<string, number>;
  eval?: Evaluation;
  eval_before?: Evaluation;
  /** With adapters by annotator: the same rows all under the generic adapter. */
  eval_generic?: Evaluation;
  /** ν of a likelihood that knows ties. */
  tie_nu?: number;
  /** With `features.choose`: the settings, likeliest first. */
  tried?: Record<string, unknown>[];
  data: Record<string, unknown>;
  paths: { run: string; adapter?: string; model?: string; population?: string };
}

/** A run in flight: what the parts of the loop share. */
class Run implements SteppedRun {
  readonly objective: MethodObjective;
  reference: (Reference & Disposable) | null = null;
  readonly tieNu: number | null;
  /** Where every annotator has an adapter. */
  readonly voters: Voters | null;
  state: RunState = freshState();
  stopped = false;
  /** As the parameters stand, and all rows under the generic adapter. */
  evaluation: Evaluation | null = null;
  generic: Evaluation | null = null;
  /** The step that `evaluation` is of. */
  private looked = -1;
  private started = performance.now();
  private readonly rows: string;

  constructor(
    readonly config: ResolvedConfig,
    readonly folder: RunFolder,
    readonly model: Model,
    readonly bank: Bank,
    readonly data: PreparedData,
    annotators: readonly string[] | null,
    readonly quiet: boolean,
    readonly stop: { signal: AbortSignal; flag: Int32Array },
    readonly note: (text: string) => void,
  ) {
    const loss = withTieNu(config.loss, data.train);
    this.tieNu = loss.tie_nu;
    this.objective = objectiveOf({ ...config, loss });
    this.objective.check(data.train);
    this.objective.check(data.eval);
    this.rows = fingerprint(data.train);
    this.voters =
      annotators && config.adapter !== 'full'
        ? new Voters(bank, annotators, { ...config.adapter, seed: config.train.seed }, data.train, this.steps)
        : null;
  }

  policy(adapter: AdapterChoice): Scorer & { bank: Bank } {
    return { model: this.model, bank: this.bank, adapter };
  }

  get abort(): Int32Array {
    return this.stop.flag;
  }

  get items(): number {
    return this.data.train.length;
  }

  get steps(): number {
    return totalSteps(this.data.train.length, this.config.train.batch_size, this.config.train);
  }

  /** Goes on from the newest whole checkpoint. */
  async resume(): Promise<boolean> {
    if (!this.folder.resumed) return false;
    const checkpoint = await loadLatestCheckpoint(this.folder.dir, (problem) =>
      this.note(`passed over a damaged checkpoint: ${problem}`),
    );
    if (!checkpoint) return false;
    this.state = await loadState(checkpoint, this.bank, this.objective, this.rows);
    this.note(`resumed at step ${this.state.step}`);
    return true;
  }

  /** The evaluation rows as things stand, each under its annotator's adapter where there are any, or all under one. */
  async evaluate(adapter: AdapterChoice = this.voters?.judging(this.state.step) ?? 0): Promise<Evaluation | null> {
    const { eval: groups } = this.data;
    if (groups.length === 0) return null;
    const bar = progress(groups.length, 'evaluate', { quiet: this.quiet });
    try {
      const { loss, rows } = await evaluateGroups(groups, this.objective, this.policy(adapter), this.reference, {
        maxTokens: packTokens(this.config.train, { model: this.model }),
        abort: this.abort,
        onProgress: (done) => bar.update(done),
      });
      return rows.length > 0
        ? summarise(rows, loss, this.voters?.index)
        : { overall: { rows: groups.length, loss } as Evaluation['overall'], annotators: {} };
    } finally {
      bar.stop();
    }
  }

  /** A step that fails or is stopped leaves the run as it was. */
  async step(at: readonly number[]): Promise<{ loss: number }> {
    const running = this.objective.state();
    try {
      const { loss } = await this.tryStep(at.map((i) => this.data.train[i]));
      return { loss };
    } catch (error) {
      this.objective.restore(running);
      throw error;
    }
  }

  private async tryStep(groups: readonly Group[]): Promise<{ loss: number }> {
    const { train } = this.config;
    const { step } = this.state;
    const started = performance.now();
    this.voters?.begin(step);
    const adapters = adaptersOf(groups, this.voters?.training(step) ?? 0);
    const active = this.voters ? new Set(adapters) : undefined;
    // Adapters of annotators are read on the host in every step (voters.ts), other banks stay where the model runs.
    if (!this.voters) await this.bank.moveTo(this.model);
    this.bank.zeroGrad(active);
    const policy = this.policy(this.voters?.training(step) ?? 0);
    const outcome = await lossStep(groups, this.objective, policy, this.reference, {
      maxTokens: packTokens(train, { model: this.model, whole: this.objective.coupled }),
      checkpoint: train.gradient_checkpointing,
      dropoutSeed: (Math.imul(train.seed + 1, 0x9e3779b1) ^ Math.imul(step + 1, 0x85ebca6b)) >>> 0 || 1,
      abort: this.abort,
    });
    const penalty = this.voters?.pull(groups, adapters, this.objective.totals(groups).weight) ?? 0;
    const optimizer = { beta1: train.beta1, beta2: train.beta2, eps: train.eps, weightDecay: train.weight_decay };
    const gradNorm = await this.bank
      .step({ ...optimizer, learningRate: this.learningRate(step), maxGradNorm: train.max_grad_norm, active })
      .catch((error: Error & { code?: unknown }) => {
        if (error.code !== 'NON_FINITE') throw error;
        const rows = `step ${step + 1}, rows ${namedRows(groups)}`;
        throw new PluralignError('NON_FINITE', `${rows}: ${error.message}`, { cause: error });
      });
    this.state.stepSeconds += (performance.now() - started) / 1000;
    this.state.step++;
    this.state.groups += groups.length;
    this.state.tokens += outcome.tokens;
    const metrics: { loss: number } & Record<string, number> = {
      loss: outcome.loss,
      grad_norm: gradNorm,
      ...outcome.metrics,
    };
    if (penalty > 0) metrics.penalty = penalty;
    this.state.means.addAll(metrics);
    return metrics;
  }

  async look(): Promise<{ values: Record<string, number> | null; save: boolean }> {
    const evaluation = await this.evaluate();
    this.evaluation = evaluation;
    this.looked = this.state.step;
    if (evaluation) this.judge(evaluation);
    return {
      values: evaluation && evaluationLine(evaluation.overall),
      save: this.state.best?.step === this.state.step,
    };
  }

  async complete(): Promise<void> {
    await this.bank.moveHome();
    const { step, best } = this.state;
    await this.restoreBest();
    if (this.looked !== step || (best && best.step !== step)) this.evaluation = await this.evaluate();
    if (this.voters) this.generic = await this.evaluate(0);
  }

  learningRate(step: number): number {
    const { learning_rate, schedule: kind, warmup, min_learning_rate_ratio: minRatio } = this.config.train;
    const [at, of] = this.voters?.schedule(step, this.steps) ?? [step, this.steps];
    return learning_rate * learningRateFactor(at, of, { kind, warmup, minRatio });
  }

  seconds(): number {
    return this.state.seconds + (performance.now() - this.started) / 1000;
  }

  startClock(): void {
    this.started = performance.now();
  }

  async save(): Promise<void> {
    await this.bank.moveHome();
    const state = { ...this.state, seconds: this.seconds() };
    await saveState(this.folder.dir, state, this.bank, this.objective, this.rows);
    const protect = this.state.best ? [this.state.best.step] : [];
    await pruneCheckpoints(this.folder.dir, this.config.train.keep_checkpoints, protect);
  }

  /** Early stopping has given up. */
  get exhausted(): boolean {
    const early = this.config.train.early_stopping;
    return early !== null && (this.state.best?.stale ?? 0) >= early.patience;
  }

  /** The value that early stopping looks at. Throws BAD_CONFIG where an evaluation has no such metric. */
  watched(evaluation: Evaluation, metric: string): number {
    const name = metric.replace(/^eval_/, '');
    const value = (evaluation.overall as unknown as Record<string, number | undefined>)[name];
    if (value === undefined)
      throw new PluralignError(
        'BAD_CONFIG',
        `train.early_stopping.metric: found ${metric}, expected one of ${Object.keys(evaluation.overall)
          .map((k) => `eval_${k}`)
          .join(', ')}`,
      );
    return value;
  }

  /** Keeps count for early stopping. */
  judge(evaluation: Evaluation): void {
    const early = this.config.train.early_stopping;
    if (!early) return;
    const value = this.watched(evaluation, early.metric);
    const { best } = this.state;
    const better = !best || (early.mode === 'min' ? value < best.value : value > best.value);
    this.state.best = better ? { step: this.state.step, value, stale: 0 } : { ...best!, stale: best!.stale + 1 };
  }

  /** Back to the best step's parameters, where the run was told to look for one. */
  async restoreBest(): Promise<void> {
    const { best } = this.state;
    if (!this.config.train.early_stopping || !best || best.step === this.state.step) return;
    const checkpoint = await openCheckpoint(join(this.folder.paths.checkpoints, `step-${best.step}`));
    await loadState(checkpoint, this.bank, this.objective, this.rows);
    this.voters?.settle(best.step);
    this.note(
      `kept the parameters of step ${best.step}, the best ${this.config.train.early_stopping.metric} (${best.value})`,
    );
  }
}

/**
 * Runs a configuration of any method, as `pluralign train` does; keys that are not given have docs/configuration.md's defaults,
 * and relative paths count from the working folder. Writes the run folder (config.yaml, metrics.jsonl, event file,
 * checkpoints, adapter or model, summary.json, report.html) and returns the summary.
 *
 * Throws `BAD_CONFIG`, `BAD_DATA`, `NOT_FOUND` and what loading the model throws before anything is trained; `NON_FINITE`
 * naming the rows, with the last checkpoint intact; `BUSY` where another process trains in the folder.
 */
export async function train(given: Config, options: TrainOptions = {}): Promise<TrainSummary> {
  const config = resolveConfig(given);
  const { quiet = false } = options;
  if (options.beside && !isPolicyMethod(config.method))
    throw new PluralignError(
      'BAD_ARGUMENT',
      `beside: method ${config.method} does not sample from its policy, and has nothing to share`,
    );
  if (config.model === 'features' && config.method === 'reward') {
    const { trainFeatures } = await import('../features/train.js');
    return trainFeatures(config, options);
  }
  if (config.em) {
    const { trainEm } = await import('../em/train.js');
    return trainEm(config, options);
  }
  if (config.method === 'soups') {
    const { trainSoups } = await import('../soups/train.js');
    return trainSoups(config, options);
  }
  if (isPolicyMethod(config.method)) {
    const { trainPolicy } = await import('../rl/train.js');
    return trainPolicy(config, options);
  }
  const note = noteTo(options);
  const stop = stopOf(options.stop);
  const folder = await openRunFolder(config, { resume: options.resume });
  let begun = false;
  try {
    using model = await openModel(config);
    const data = await prepareData(config, model, { signal: stop.signal, quiet });
    for (const text of data.notes) note(text);
    const annotators =
      config.adapter !== 'full' && config.adapter.per === 'annotator' ? annotatorsOf(data.train) : null;
    if (annotators) checkNamed(annotators, config.data.train);
    const bank = await makeBank(config, model, annotators ? voterAdapters(annotators) : [adapterName]);
    const run = new Run(config, folder, model, bank, data, annotators, quiet, stop, note);
    const resumed = await run.resume();
    if (run.objective.reference) run.reference = await makeReference(config, model);
    using _reference = run.reference;
    if (!resumed && config.method !== 'pretrain') {
      const before = await run.evaluate();
      if (before && config.train.early_stopping) run.watched(before, config.train.early_stopping.metric);
      run.state.evalBefore = before;
    }
    begun = true;
    run.startClock();
    await runSteps(run);
    const summary = await finish(run);
    bank.dispose();
    return summary;
  } catch (error) {
    if (!begun) await folder.discard();
    throw error;
  } finally {
    await folder.release();
  }
}

async function finish(run: Run): Promise<TrainSummary> {
  const { config, state, folder, data, evaluation, generic } = run;
  const seconds = run.seconds();
  const paths: TrainSummary['paths'] = { run: folder.dir };
  if (!run.stopped) Object.assign(paths, await saveResult(config, run.model, run.bank, run.voters?.annotators));
  const summary: TrainSummary = {
    method: config.method,
    steps: state.step,
    finished: !run.stopped,
    seconds,
    train: {
      ...state.last,
      samples_per_second: state.groups / Math.max(state.stepSeconds, 1e-9),
      tokens_per_second: state.tokens / Math.max(state.stepSeconds, 1e-9),
    },
    data: { ...data.reports },
    paths,
  };
  if (evaluation) summary.eval = evaluation;
  if (state.evalBefore) summary.eval_before = state.evalBefore as Evaluation;
  if (generic) summary.eval_generic = generic;
  if (run.tieNu !== null) summary.tie_nu = run.tieNu;
  if (run.voters && !run.stopped) await writeAdapterMap(folder.dir, run.bank, run.voters.annotators, data.train);
  await folder.writeSummary(summary);
  const { writeReport } = await import('../report/index.js');
  await writeReport(folder.dir);
  return summary;
}
