import * as fsp from 'node:fs/promises';
import { errnoOf, ioError, writeFileAtomic } from '../base/files.js';

/** One line of metrics.jsonl. */
export type MetricsRecord = { step: number } & Record<string, number | string | null>;

/** Reads metrics.jsonl; a last line that a dying process left unfinished is passed over. Missing file: no records. */
export async function readMetrics(path: string): Promise<MetricsRecord[]> {
  let text: string;
  try {
    text = await fsp.readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw ioError('read', path, error);
  }
  const records: MetricsRecord[] = [];
  for (const line of text.split('\n')) {
    try {
      const record = JSON.parse(line);
      if (typeof record?.step === 'number') records.push(record);
    } catch {
      // An unfinished line.
    }
  }
  return records;
}

/** metrics.jsonl: one object per logged step, one write per line. Non-finite numbers are written as null. */
export class MetricsWriter {
  readonly #handle: fsp.FileHandle;
  readonly #path: string;
  #last: Promise<unknown> = Promise.resolve();

  private constructor(path: string, handle: fsp.FileHandle) {
    this.#path = path;
    this.#handle = handle;
  }

  /**
   * Opens for appending. `resumeAt`: the step of the checkpoint a run continues from (its count of finished steps); lines
   * of later steps, which will be written again, are cut off first, in one atomic replacement. `records`: how many lines
   * there were when the checkpoint was saved; those of the same step that came after it are cut off too.
   */
  static async open(path: string, options: { resumeAt?: number; records?: number } = {}): Promise<MetricsWriter> {
    const { resumeAt, records } = options;
    if (resumeAt === undefined) await writeFileAtomic(path, '');
    else {
      const kept = (await readMetrics(path)).filter((record) => record.step <= resumeAt).slice(0, records);
      await writeFileAtomic(path, kept.map((record) => `${JSON.stringify(record)}\n`).join(''));
    }
    try {
      return new MetricsWriter(path, await fsp.open(path, 'a'));
    } catch (error) {
      throw ioError('open', path, error);
    }
  }

  /** Appends a line; calls may overlap and keep their order. */
  write(record: MetricsRecord): Promise<void> {
    const line = `${JSON.stringify(record)}\n`;
    const done = this.#last.then(async () => {
      try {
        await this.#handle.appendFile(line);
      } catch (error) {
        throw ioError('write', this.#path, error);
      }
    });
    this.#last = done.catch(() => {});
    return done;
  }

  async close(): Promise<void> {
    await this.#last;
    await this.#handle.close();
  }
}

/**
 * Weighted means of named values since the last `take`, in float64. The state goes into a checkpoint, so that a resumed
 * run logs the same numbers when `log_every` does not divide the step it was saved at.
 */
export class RunningMeans {
  readonly #sums = new Map<string, { sum: number; weight: number }>();

  constructor(state: Record<string, [sum: number, weight: number]> = {}) {
    for (const [name, [sum, weight]] of Object.entries(state)) this.#sums.set(name, { sum, weight });
  }

  /** `weight`: how many rows (or tokens) the value is a mean of. A weight of 0 adds nothing. */
  add(name: string, value: number, weight = 1): void {
    if (weight === 0) return;
    const entry = this.#sums.get(name) ?? { sum: 0, weight: 0 };
    entry.sum += value * weight;
    entry.weight += weight;
    this.#sums.set(name, entry);
  }

  addAll(values: Record<string, number>, weight = 1): void {
    for (const [name, value] of Object.entries(values)) this.add(name, value, weight);
  }

  /** The means, in the order the names first came; starts again. */
  take(): Record<string, number> {
    const means = Object.fromEntries([...this.#sums].map(([name, { sum, weight }]) => [name, sum / weight]));
    this.#sums.clear();
    return means;
  }

  /** True where nothing was added since the last `take`. */
  get empty(): boolean {
    return this.#sums.size === 0;
  }

  /** For a checkpoint's meta; `new RunningMeans(state)` goes on from it. */
  state(): Record<string, [sum: number, weight: number]> {
    return Object.fromEntries([...this.#sums].map(([name, { sum, weight }]) => [name, [sum, weight]]));
  }
}
