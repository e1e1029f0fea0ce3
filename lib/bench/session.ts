import type { ChosenDevice } from '../native/device.js';
import { isAborted, PluralignError } from '../native/errors.js';
import { type Progress, progress } from '../training/progress.js';

/** One result: flat, naming what was timed, its shape and its unit. */
export type BenchRecord = Record<string, string | number>;

export interface BenchOptions {
  /** `auto`: float32 and bf16, one after the other. */
  dtype: 'auto' | 'bf16' | 'float32';
  threads: number;
  /** `train`: a GPU; absent or null: the CPU. */
  chosen?: ChosenDevice | null;
  stop: { flag: Int32Array };
  /** `train`: also the shape of a 135M-parameter model, which takes minutes. */
  large?: boolean;
  /** `train`: what a token costs against tokens of the pass, context, adapters, rank and threads. */
  curves?: boolean;
  /** One run of the smallest shapes; for tests. */
  quick?: boolean;
}

export function dtypes(dtype: BenchOptions['dtype']): ('float32' | 'bf16')[] {
  return dtype === 'auto' ? ['float32', 'bf16'] : [dtype];
}

export function median(values: ArrayLike<number>): number {
  const sorted = Array.from(values).sort((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** To this many significant digits: more would be noise. */
export const digits = (x: number, n = 4): number => Number(x.toPrecision(n));

/** Throws `ABORTED` once stopping is wanted. */
export function checkStop(stop: BenchOptions['stop']): void {
  if (Atomics.load(stop.flag, 0) !== 0) throw new PluralignError('ABORTED', 'stopped on request');
}

/**
 * Runs cases one after another, with a bar on stderr; each hands over its records as they come. Once stopping is wanted, gives
 * what there is; throws `ABORTED` for nothing.
 */
export async function runCases<T>(
  label: string,
  cases: readonly T[],
  stop: BenchOptions['stop'],
  run: (one: T, done: (record: BenchRecord) => void) => Promise<void>,
): Promise<BenchRecord[]> {
  const bar: Progress = progress(cases.length, label);
  const records: BenchRecord[] = [];
  try {
    for (const [i, one] of cases.entries()) {
      checkStop(stop);
      await run(one, (record) => void records.push(record));
      bar.update(i + 1);
    }
  } catch (error) {
    if (records.length === 0 || !isAborted(error)) throw error;
  } finally {
    bar.stop();
  }
  return records;
}
