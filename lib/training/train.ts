import { join } from 'node:path';
import type { Bank } from '../adapters/bank.js';
import { type Config, type ResolvedConfig, resolveConfig } from '../config/index.js';
import type { Group } from '../data/types.js';
import { type Evaluation, summarise } from '../evaluation/preference.js';
import { type MethodObjective, objectiveOf } from '../methods/index.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { loadLatestCheckpoint, openCheckpoint, pruneCheckpoints } from './checkpoint.js';
import { MetricsWriter } from './metrics.js';
import { DataOrder, totalSteps } from './order.js';
import { progress } from './progress.js';
import { openRunFolder, type RunFolder } from './run-folder.js';
import { saveResult } from './save.js';
import { learningRateFactor } from './schedule.js';
import type { Reference, Scorer } from './scorer.js';
import { makeBank, makeReference, openModel, type PreparedData, prepareData } from './setup.js';
import { freshState, loadState, type RunState, saveState } from './state.js';
import { evaluateGroups, lossStep } from './step.js';
import { EventWriter } from './tensorboard.js';

export interface TrainOptions {
  /** Go on from the newest valid checkpoint of the run folder. */
  resume?: boolean;
  /** Stops within a step; the run is saved and can be resumed. */
  stop?: { signal: AbortSignal; flag: Int32Array };
  /** No progress and no notes on stderr. */
  quiet?: boolean;
  /** Notes about data, checkpoints and stops; default: lines on stderr. */
  onNote?: (note: string) => void;
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
  data: Record<string, unknown>;
  paths: { run: string; adapter?: string; model?: string };
}

/** A run in flight: what the parts of the loop share. */
class Run {
  readonly objective: MethodObjective;
  reference: Reference | null = null;
  state: RunState = freshState();
  stopped = false;
  private started = performance.now();

  constructor(
    readonly config: ResolvedConfig,
    readonly folder: RunFolder,
    readonly model: Model,
    readonly bank: Bank,
    readonly data: PreparedData,
    readonly options: TrainOptions,
    readonly note: (text: string) => void,
  ) {
    this.objective = objectiveOf(config);
    this.objective.check(data.train);
    this.objective.check(data.eval);
  }

  get policy(): Scorer & { bank: Bank } {
    return { model: this.model, bank: this.bank, adapter: 0 };
  }

  get abort(): Int32Array | undefined {
    return this.options.stop?.flag;
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
    this.state = await loadState(checkpoint, this.bank, this.objective);
    this.note(`resumed at step ${this.state.step}`);
    return true;
  }

  async evaluate(): Promise<Evaluation | null> {
    const { eval: groups } = this.data;
    if (groups.length === 0) return null;
    const bar = progress(groups.length, 'evaluate', { quiet: this.options.quiet });
    try {
      const { loss, rows } = await evaluateGroups(groups, this.objective, this.policy, this.reference, {
        maxTokens: this.config.train.max_tokens_per_pack,
        abort: this.abort,
        onProgress: (done) => bar.update(done),
      });
      return rows.length > 0
        ? summarise(rows, loss)
        : { overall: { rows: groups.length, loss } as Evaluation['overall'], annotators: {} };
    } finally {
      bar.stop();
    }
  }

  /** One optimizer step on the given groups; the learning rate it took. */
  async step(groups: readonly Group[]): Promise<Record<string, number>> {
    const { train } = this.config;
    const { step } = this.state;
    const started = performance.now();
    const learningRate =
      train.learning_rate *
      learningRateFactor(step, this.steps, {
        kind: train.schedule,
        warmup: train.warmup,
        minRatio: train.min_learning_rate_ratio,
      });
    this.bank.zeroGrad();
    const outcome = await lossStep(groups, this.objective, this.policy, this.reference, {
      maxTokens: train.max_tokens_per_pack,
      checkpoint: train.gradient_checkpointing,
      dropoutSeed: (Math.imul(train.seed + 1, 0x9e3779b1) ^ Math.imul(step + 1, 0x85ebca6b)) >>> 0 || 1,
      abort: this.abort,
    });
    const gradNorm = await this.bank.step({
      learningRate,
      beta1: train.beta1,
      beta2: train.beta2,
      eps: train.eps,
      weightDecay: train.weight_decay,
      maxGradNorm: train.max_grad_norm,
    });
    this.state.stepSeconds += (performance.now() - started) / 1000;
    this.state.step++;
    this.state.groups += groups.length;
    this.state.tokens += outcome.tokens;
    const metrics = { loss: outcome.loss, grad_norm: gradNorm, ...outcome.metrics };
    this.state.means.addAll(metrics);
    return { ...metrics, learning_rate: learningRate };
  }

  seconds(): number {
    return this.state.seconds + (performance.now() - this.started) / 1000;
  }

  startClock(): void {
    this.started = performance.now();
  }

  async save(): Promise<void> {
    await saveState(this.folder.dir, { ...this.state, seconds: this.seconds() }, this.bank, this.objective);
    const protect = this.state.best ? [this.state.best.step] : [];
    await pruneCheckpoints(this.folder.dir, this.config.train.keep_checkpoints, protect);
  }

  /** Early stopping has given up. */
  get exhausted(): boolean {
    const early = this.config.train.early_stopping;
    return early !== null && (this.state.best?.stale ?? 0) >= early.patience;
  }

  /** Keeps count for early stopping; true where the run should end. */
  judge(evaluation: Evaluation): boolean {
    const early = this.config.train.early_stopping;
    if (!early) return false;
    const name = early.metric.replace(/^eval_/, '');
    const value = (evaluation.overall as unknown as Record<string, number | undefined>)[name];
    if (value === undefined)
      throw new PluralignError(
        'BAD_CONFIG',
        `train.early_stopping.metric: found ${early.metric}, expected one of ${Object.keys(evaluation.overall)
          .map((k) => `eval_${k}`)
          .join(', ')}`,
      );
    const { best } = this.state;
    const better = !best || (early.mode === 'min' ? value < best.value : value > best.value);
    this.state.best = better ? { step: this.state.step, value, stale: 0 } : { ...best!, stale: best!.stale + 1 };
    return this.exhausted;
  }

  /** Back to the best step's parameters, where the run was told to look for one. */
  async restoreBest(): Promise<void> {
    const { best } = this.state;
    if (!this.config.train.early_stopping || !best || best.step === this.state.step) return;
    const checkpoint = await openCheckpoint(join(this.folder.paths.checkpoints, `step-${best.step}`));
    await loadState(checkpoint, this.bank, this.objective);
    this.note(
      `kept the parameters of step ${best.step}, the best ${this.config.train.early_stopping.metric} (${best.value})`,
    );
  }
}

async function loop(run: Run): Promise<Evaluation | null> {
  const { config, state, folder, data } = run;
  const { train } = config;
  const resumeAt = folder.resumed ? state.step : undefined;
  const metrics = await MetricsWriter.open(folder.paths.metrics, { resumeAt });
  const events = await EventWriter.open(folder.dir, { resumeAt });
  const order = new DataOrder(data.train.length, {
    batchSize: train.batch_size,
    seed: train.seed,
    shuffle: train.shuffle,
  });
  const bar = progress(run.steps, config.method, { quiet: run.options.quiet, done: state.step });
  const startTokens = state.tokens;
  let evaluation: Evaluation | null = null;
  const log = async (values: Record<string, number>) => {
    await metrics.write({ step: state.step, epoch: order.epochAt(state.step), ...values });
    await events.scalars(state.step, values);
  };
  const evaluate = async () => {
    evaluation = await run.evaluate();
    if (!evaluation) return false;
    await log(prefixed(evaluation.overall as unknown as Record<string, number>));
    return run.judge(evaluation);
  };
  run.startClock();
  try {
    let evaluated = -1;
    while (state.step < run.steps && !run.exhausted) {
      if (run.options.stop?.signal.aborted) throw new PluralignError('ABORTED', 'stopped on request');
      const groups = [...order.batch(state.step)].map((i) => data.train[i]);
      const last = await run.step(groups);
      bar.update(state.step, { loss: last.loss, tokens: state.tokens - startTokens });
      const end = state.step === run.steps;
      if (state.step % train.log_every === 0 || end) {
        state.last = { ...state.means.take(), learning_rate: last.learning_rate };
        await log(state.last);
      }
      const save = end || (train.save_every !== null && state.step % train.save_every === 0);
      const look = end || (train.eval_every !== null ? state.step % train.eval_every === 0 : save);
      let enough = false;
      if (look) {
        enough = await evaluate();
        evaluated = state.step;
      }
      if (save || (look && state.best?.step === state.step)) await run.save();
      if (enough) break;
    }
    await run.restoreBest();
    if (evaluated !== state.step || (state.best && state.best.step !== state.step)) evaluation = await run.evaluate();
  } catch (error) {
    if ((error as { code?: unknown }).code !== 'ABORTED') throw error;
    run.stopped = true;
    await run.save();
    run.note(`stopped after step ${state.step}; the run is saved, go on with --resume`);
  } finally {
    bar.stop();
    await metrics.close();
    await events.close();
  }
  return evaluation;
}

function prefixed(values: Record<string, number>): Record<string, number> {
  return Object.fromEntries(
    Object.entries(values)
      .filter(([name, value]) => name !== 'rows' && typeof value === 'number')
      .map(([name, value]) => [`eval_${name}`, value]),
  );
}

/**
 * Runs a configuration: `pretrain`, `sft`, `dpo` or `reward`. Writes the run folder (config.yaml, metrics.jsonl, event
 * file, checkpoints, adapter or model, summary.json, report.html) and returns the summary.
 *
 * Throws `BAD_CONFIG`, `BAD_DATA`, `NOT_FOUND` and what loading the model throws before anything is trained; `NON_FINITE`
 * naming the rows, with the last checkpoint intact; `BUSY` where another process trains in the folder.
 */
export async function train(given: Config | ResolvedConfig, options: TrainOptions = {}): Promise<TrainSummary> {
  const config = resolveConfig(given as Config);
  const note = options.onNote ?? ((text: string) => void (options.quiet || process.stderr.write(`${text}\n`)));
  const folder = await openRunFolder(config, { resume: options.resume });
  try {
    using model = await openModel(config);
    const data = await prepareData(config, model, options.stop?.signal);
    for (const text of data.notes) note(text);
    if (data.train.length === 0) throw new PluralignError('BAD_DATA', 'no training row is left');
    const bank = await makeBank(config, model);
    const run = new Run(config, folder, model, bank, data, options, note);
    const resumed = await run.resume();
    if (run.objective.reference) run.reference = await makeReference(config, model);
    if (!resumed) run.state.evalBefore = config.method === 'pretrain' ? null : await run.evaluate();
    const evaluation = await loop(run);
    const summary = await finish(run, evaluation);
    bank.dispose();
    return summary;
  } finally {
    await folder.release();
  }
}

async function finish(run: Run, evaluation: Evaluation | null): Promise<TrainSummary> {
  const { config, state, folder, data } = run;
  const seconds = run.seconds();
  const paths: TrainSummary['paths'] = { run: folder.dir };
  if (!run.stopped) Object.assign(paths, await saveResult(config, run.model, run.bank));
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
  await folder.writeSummary(summary);
  const { writeReport } = await import('../report/index.js');
  if (!run.stopped) await writeReport(folder.dir);
  return summary;
}
