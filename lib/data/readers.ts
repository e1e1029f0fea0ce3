import { readFile, stat } from 'node:fs/promises';
import { extname } from 'node:path';
import { PluralignError } from '../native/errors.js';
import { readCsv } from './csv.js';
import { readParquet } from './parquet.js';
import { decodeUtf8, fileError, readLines, refuseUtf16 } from './text-file.js';
import type { Origin } from './types.js';
import { badData } from './where.js';

/** One record of a file as it stands there, not validated. */
export interface RawRecord {
  origin: Origin;
  /** Absent where the record could not be read. */
  value?: unknown;
  /** Why the record could not be read; the records after it still can. */
  problem?: PluralignError;
  /** Columns that were not read since nothing wants them. */
  ignored?: readonly string[];
}

export interface RecordOptions {
  /** Fields that are wanted; columns beside them need not be decoded. Default: all. */
  fields?: ReadonlySet<string>;
}

type Reader = (file: string, options: RecordOptions) => AsyncGenerator<RawRecord>;

const readers: Record<string, Reader> = {
  '.jsonl': readJsonLines,
  '.json': readJson,
  '.csv': readCsv,
  '.parquet': readParquet,
};

/** The extensions that `readRecords` knows. */
export const knownExtensions: readonly string[] = Object.keys(readers);

/**
 * Reads records from one file or several, in order: .jsonl and .csv as a stream, .parquet by row group, .json whole.
 *
 * @throws PluralignError `NOT_FOUND`, `IO`, or `BAD_DATA` where a whole file cannot be read. A single bad record comes
 * as a record with `problem`.
 */
export async function* readRecords(
  paths: string | readonly string[],
  options: RecordOptions = {},
): AsyncGenerator<RawRecord> {
  const files = typeof paths === 'string' ? [paths] : paths;
  const chosen = files.map((file) => {
    const extension = extname(file).toLowerCase();
    if (!Object.hasOwn(readers, extension)) {
      throw new PluralignError(
        'BAD_DATA',
        `${file}: found ${extension ? `the extension ${extension}` : 'no extension'}, ` +
          `expected a file of rows that ends with ${knownExtensions.join(', ')}`,
      );
    }
    return readers[extension];
  });
  for (const [i, file] of files.entries()) yield* chosen[i](file, options);
}

async function* readJsonLines(file: string): AsyncGenerator<RawRecord> {
  for await (const { line, text } of readLines(file)) {
    const origin = { file, line };
    let value: unknown;
    try {
      const json = text();
      if (json.trim() === '') continue;
      value = JSON.parse(json);
    } catch (error) {
      yield { origin, problem: jsonProblem(origin, error) };
      continue;
    }
    yield { origin, value };
  }
}

async function* readJson(file: string): AsyncGenerator<RawRecord> {
  const records = recordsOf(file, await parseJsonFile(file));
  for (const [i, value] of records.entries()) yield { origin: { file, line: i + 1 }, value };
}

async function parseJsonFile(file: string): Promise<unknown> {
  let bytes: Buffer;
  try {
    if ((await stat(file)).size >= 2 ** 29) {
      throw new PluralignError(
        'BAD_DATA',
        `${file}: found 512 MiB or more in one JSON document, expected less; write one row on each line into a .jsonl file`,
      );
    }
    bytes = await readFile(file);
  } catch (error) {
    throw fileError(file, error);
  }
  refuseUtf16(file, bytes);
  const text = decodeUtf8(file, 1, bytes).replace(/^\uFEFF/, '');
  try {
    return JSON.parse(text);
  } catch (error) {
    const { message } = error as Error;
    const position = /at position (\d+)/.exec(message);
    const line = position ? text.slice(0, Number(position[1])).split('\n').length : text.split('\n').length;
    const hint = /\}\s*\n\s*\{/.test(text) ? '; a file with one row on each line ends with .jsonl' : '';
    throw new PluralignError('BAD_DATA', `${file}, line ${line}: malformed JSON: ${message}${hint}`, { cause: error });
  }
}

function recordsOf(file: string, document: unknown): unknown[] {
  if (Array.isArray(document)) return document;
  for (const key of ['data', 'rows']) {
    const inner = (document as Record<string, unknown> | null)?.[key];
    if (Array.isArray(inner)) return inner;
  }
  throw new PluralignError(
    'BAD_DATA',
    `${file}: expected an array of rows, or an object with the array under "data" or "rows"`,
  );
}

function jsonProblem(origin: Origin, error: unknown): PluralignError {
  if (error instanceof PluralignError) return error;
  return badData(origin, `malformed JSON: ${(error as Error).message}; expected one JSON object on each line`, {
    cause: error,
  });
}
