import { createHash } from 'node:crypto';
import type { Bank } from '../adapters/bank.js';
import type { Group } from '../data/types.js';
import type { Objective } from '../methods/objective.js';
import { PluralignError } from '../native/errors.js';
import { type Checkpoint, saveCheckpoint } from './checkpoint.js';
import { RunningMeans } from './metrics.js';

/** The best evaluation so far, for early stopping. */
export interface Best {
  step: number;
  value: number;
  /** Evaluations since without a better one. */
  stale: number;
}

/** All that a run needs to go on to the bit, besides its configuration and data. */
export interface RunState {
  /** Steps done. */
  step: number;
  means: RunningMeans;
  best: Best | null;
  /** Seconds of training before the last interruption. */
  seconds: number;
  /** Of these, in steps: without evaluation and files. */
  stepSeconds: number;
  /** Groups and tokens trained on. */
  groups: number;
  tokens: number;
  /** The last step whose evaluation is done; a run stopped during one still owes it. */
  evaluated: number;
  /** Lines of metrics.jsonl. */
  records: number;
  /** The last line of metrics. */
  last: Record<string, number>;
  evalBefore: unknown;
}

export function freshState(): RunState {
  return {
    step: 0,
    means: new RunningMeans(),
    best: null,
    seconds: 0,
    stepSeconds: 0,
    groups: 0,
    tokens: 0,
    evaluated: 0,
    records: 0,
    last: {},
    evalBefore: null,
  };
}

/** SHA-256 over everything of the training groups that a step depends on. */
export function fingerprint(groups: readonly Group[]): string {
  const hash = createHash('sha256');
  for (const g of groups) {
    hash.update(
      JSON.stringify([g.kind, g.completions.length, g.ranking, g.label, g.margin, g.weight, g.tie, g.annotator]),
    );
    for (const ids of [g.prompt, ...g.completions]) hash.update(Int32Array.of(ids.length)).update(ids);
  }
  return hash.digest('hex');
}

/**
 * Writes RUN/checkpoints/step-N. `data`: the training rows' fingerprint.
 * Throws NON_FINITE, with nothing written, where a parameter is not finite; IO where writing fails.
 */
export async function saveState(
  run: string,
  state: RunState,
  bank: Bank,
  objective: Pick<Objective, 'state' | 'restore'>,
  data: string,
): Promise<void> {
  const { parameters, m, v, steps, factors } = bank.state();
  if (!parameters.every(Number.isFinite))
    throw new PluralignError(
      'NON_FINITE',
      `parameters are no longer finite after step ${state.step}; no checkpoint was written. Lower the learning rate`,
    );
  const moments =
    m && v
      ? [
          { name: 'm.f32', data: m },
          { name: 'v.f32', data: v },
        ]
      : [];
  await saveCheckpoint(
    run,
    state.step,
    [{ name: 'parameters.f32', data: parameters }, ...moments, { name: 'steps.i32', data: steps }],
    { ...state, means: state.means.state(), objective: objective.state(), factors, data },
  );
}

/**
 * Fills bank, objective and state from a checkpoint. Throws BAD_SHAPE where it is of other adapters, BAD_DATA where the
 * training rows have changed since.
 */
export async function loadState(
  checkpoint: Checkpoint,
  bank: Bank,
  objective: Pick<Objective, 'state' | 'restore'>,
  data: string,
): Promise<RunState> {
  const { means, objective: running, factors, data: rows, ...rest } = checkpoint.meta as Record<string, unknown>;
  if (rows !== data)
    throw new PluralignError(
      'BAD_DATA',
      `--resume: the training rows (or the tokenizer) are not those that ${checkpoint.dir} was trained on; restore ` +
        'them, or choose another output',
    );
  const n = bank.parameters.length;
  const read = async (name: string) => {
    const out = new Float32Array(n);
    await checkpoint.readInto(name, out);
    return out;
  };
  const steps = new Int32Array(bank.steps.length);
  await checkpoint.readInto('steps.i32', steps);
  const moments = checkpoint.has('m.f32');
  bank.restore({
    parameters: await read('parameters.f32'),
    m: moments ? await read('m.f32') : null,
    v: moments ? await read('v.f32') : null,
    steps,
    factors: factors as { name: string; rows: number; cols: number }[],
  });
  objective.restore(running);
  return { ...(rest as unknown as RunState), means: new RunningMeans(means as Record<string, [number, number]>) };
}
