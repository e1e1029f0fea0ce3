import { appendFile, readFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { errnoOf, ioError, makeFolder } from './files.js';

/**
 * A file of records, a line of JSON each (.jsonl), that outlives the process that writes it: what was appended is read again
 * by the next one. A line that a killed process left unfinished, or that is no object, is passed over, and the next record starts a line of its own.
 */
export class RecordLog<T extends object> {
  /** Appends go one after another, in the order of their calls. */
  #last: Promise<void> = Promise.resolve();
  #unfinished: boolean;

  private constructor(
    readonly path: string,
    /** What the file held when it was opened. */
    readonly records: readonly T[],
    unfinished: boolean,
  ) {
    this.#unfinished = unfinished;
  }

  /** A file that is not there has no records. Throws `IO` where it cannot be read. */
  static async open<T extends object>(path: string): Promise<RecordLog<T>> {
    const text = await readFile(path, 'utf8').catch((error: unknown) => {
      if (errnoOf(error) === 'ENOENT') return '';
      throw ioError('read', path, error);
    });
    const records = text.split('\n').flatMap((line): T[] => {
      try {
        const found: unknown = JSON.parse(line);
        return typeof found === 'object' && found !== null && !Array.isArray(found) ? [found as T] : [];
      } catch {
        return [];
      }
    });
    return new RecordLog(path, records, text !== '' && !text.endsWith('\n'));
  }

  /** Appends a record; its folder is made where there is none. Throws `IO`. */
  append(record: T): Promise<void> {
    const done = this.#last.then(async () => {
      const start = this.#unfinished ? '\n' : '';
      try {
        await makeFolder(dirname(this.path));
        await appendFile(this.path, `${start}${JSON.stringify(record)}\n`);
        this.#unfinished = false;
      } catch (error) {
        // A disk that filled up may have taken half of it.
        this.#unfinished = true;
        throw ioError('write', this.path, error);
      }
    });
    this.#last = done.catch(() => {});
    return done;
  }
}
