import type { Bank } from '../adapters/bank.js';
import { type Checkpoint, saveCheckpoint } from './checkpoint.js';
import { RunningMeans } from './metrics.js';
import type { Objective } from './objective.js';

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
    last: {},
    evalBefore: null,
  };
}

/** Writes RUN/checkpoints/step-N. */
export async function saveState(run: string, state: RunState, bank: Bank, objective: Objective): Promise<void> {
  const { parameters, m, v, steps, factors } = bank.state();
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
    { ...state, means: state.means.state(), objective: objective.state(), factors },
  );
}

/** Fills bank, objective and state from a checkpoint. Throws BAD_SHAPE where it is of other adapters. */
export async function loadState(checkpoint: Checkpoint, bank: Bank, objective: Objective): Promise<RunState> {
  const { means, objective: running, factors, ...rest } = checkpoint.meta as Record<string, unknown>;
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
