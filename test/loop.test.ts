import { describe, expect, test } from 'vitest';
import { PluralignError } from '../lib/native/errors.js';
import { runSteps, type SteppedRun } from '../lib/training/loop.js';
import { RunningMeans, readMetrics } from '../lib/training/metrics.js';
import { scratch } from './support/runs.js';

const { path } = scratch();

/** Three steps; the evaluation after the second fails. */
async function failing(dir: string, code: string) {
  const { mkdirSync } = await import('node:fs');
  mkdirSync(dir);
  const state = { step: 0, tokens: 0, evaluated: 0, means: new RunningMeans(), records: 0, last: {} };
  const train = { batch_size: 1, seed: 0, shuffle: false, save_every: null, eval_every: 2, log_every: 3 };
  const run = {
    config: { method: 'dpo', train },
    folder: { dir, resumed: false },
    state,
    steps: 3,
    items: 3,
    quiet: true,
    stop: { signal: new AbortController().signal },
    note: () => {},
    stopped: false,
    step: async () => {
      state.means.add('loss', ++state.step);
      return {};
    },
    learningRate: () => 0.5,
    look: async () => {
      throw new PluralignError(code, 'no further');
    },
    save: async () => {},
    complete: async () => {},
  };
  const error = await runSteps(run as unknown as SteppedRun).catch((thrown: unknown) => thrown);
  return { error, run, lines: await readMetrics(`${dir}/metrics.jsonl`) };
}

describe('an evaluation that does not end', () => {
  test('by an error leaves the means of the steps before it', async () => {
    const { error, lines } = await failing(path('error'), 'OUT_OF_MEMORY');
    expect(error).toMatchObject({ code: 'OUT_OF_MEMORY' });
    expect(lines).toEqual([{ step: 2, epoch: 2 / 3, loss: 1.5, learning_rate: 0.5 }]);
  });

  test('by a stop keeps them for the run that goes on', async () => {
    const { error, run, lines } = await failing(path('stop'), 'ABORTED');
    expect(error).toBeUndefined();
    expect(run.stopped).toBe(true);
    expect(lines).toEqual([]);
    expect(run.state.means.take()).toEqual({ loss: 1.5 });
  });
});
