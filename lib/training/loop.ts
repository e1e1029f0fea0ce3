import type { ResolvedConfig } from '../config/index.js';
import { isAborted, PluralignError } from '../native/errors.js';
import { DataOrder } from './order.js';
import { type ProgressInfo, progress } from './progress.js';
import type { RunFolder } from './run-folder.js';
import { type Logged, RunLog } from './run-log.js';

/** What every run that goes in steps keeps count of; the loop writes `evaluated`, `records` and `last`. */
export interface StepState extends Logged {
  /** Steps done. */
  step: number;
  tokens: number;
  /** The last step whose evaluation is done; a run stopped during one still owes it. */
  evaluated: number;
}

/** A method in steps over a run folder: what is its own. */
export interface SteppedRun {
  readonly config: ResolvedConfig;
  readonly folder: RunFolder;
  readonly state: StepState;
  /** Of the whole run. */
  readonly steps: number;
  /** Training items that batches are drawn from. */
  readonly items: number;
  readonly quiet: boolean;
  readonly stop: { readonly signal: AbortSignal };
  readonly note: (text: string) => void;
  /** True once a stop was asked for and obeyed. */
  stopped: boolean;
  /** Nothing more is to be gained from steps. */
  readonly exhausted?: boolean;
  /** One optimizer step on the items at these places; counts itself. What the bar shows. */
  step(at: readonly number[]): Promise<ProgressInfo>;
  /** Of the step after `step` steps. */
  learningRate(step: number): number;
  /** Evaluates what there is: its line for metrics.jsonl (null: none), and whether this is a state to save. */
  look(): Promise<{ values: Record<string, number> | null; save?: boolean }>;
  save(): Promise<void>;
  /** After the last step: what the summary still needs. */
  complete(): Promise<void>;
}

/**
 * step → evaluation → metrics → checkpoint, until the steps are done or a stop is asked for; the run is then saved and
 * `stopped`. Lines of metrics of a resumed run go on where its checkpoint was.
 */
export async function runSteps(run: SteppedRun): Promise<void> {
  const { config, state, folder } = run;
  const { train } = config;
  const resumeAt = folder.resumed ? state.step : undefined;
  const order = new DataOrder(run.items, { batchSize: train.batch_size, seed: train.seed, shuffle: train.shuffle });
  const log = await RunLog.open(folder.dir, state, (step) => order.epochAt(step), resumeAt);
  const bar = progress(run.steps, config.method, { quiet: run.quiet, done: state.step });
  const startTokens = state.tokens;
  const dueNow = () => {
    const end = state.step === run.steps;
    const save = end || (train.save_every !== null && state.step % train.save_every === 0);
    const look = end || (train.eval_every !== null ? state.step % train.eval_every === 0 : save);
    return { save, look, log: end || state.step % train.log_every === 0 };
  };
  /** An evaluation that fails ends the run: the line that would have held it says at least how training went. */
  const failed = async (error: unknown): Promise<never> => {
    if (!isAborted(error)) await log.writeStep(state.step, run.learningRate(state.step - 1)).catch(() => {});
    throw error;
  };
  /** What follows a step. */
  const settle = async () => {
    const due = dueNow();
    const seen = due.look ? await run.look().catch(failed) : null;
    if (due.log || seen?.values) await log.writeStep(state.step, run.learningRate(state.step - 1), seen?.values ?? {});
    if (seen) state.evaluated = state.step;
    if (due.save || seen?.save) await run.save();
  };
  let trained = false;
  try {
    // A run that was stopped in an evaluation owes it.
    if (state.step > 0 && dueNow().look && state.evaluated !== state.step) await settle();
    while (state.step < run.steps && !run.exhausted) {
      if (run.stop.signal.aborted) throw new PluralignError('ABORTED', 'stopped on request');
      const shown = await run.step([...order.batch(state.step)]);
      bar.update(state.step, { ...shown, tokens: state.tokens - startTokens });
      await settle();
    }
    trained = true;
    await run.complete();
  } catch (error) {
    if (!isAborted(error)) throw error;
    run.stopped = true;
    // After the last step the parameters may be other ones already; the checkpoint that is there is the right one.
    if (!trained && state.step > 0) await run.save();
    run.note(
      state.step > 0
        ? `stopped after step ${state.step}; the run is saved, go on with --resume`
        : 'stopped before the first step, and nothing is saved: --resume begins anew',
    );
  } finally {
    bar.stop();
    await log.close();
  }
}

/** Scores as a line of metrics holds them. */
export const evaluationLine = (scores: object): Record<string, number> =>
  Object.fromEntries(
    Object.entries(scores)
      .filter(([name, value]) => name !== 'rows' && typeof value === 'number')
      .map(([name, value]) => [`eval_${name}`, value as number]),
  );
