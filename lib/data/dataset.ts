import { PluralignError } from '../native/errors.js';
import { rowKey, similarNames } from './identity.js';
import { readRecords } from './readers.js';
import { parseRow, type RowOptions, rowFields } from './rows.js';
import type { Origin, Row } from './types.js';
import { badData } from './where.js';

export interface ReadRowsOptions extends RowOptions {
  /** `error` (default): the first bad row ends the reading. `skip`: it is left out, counted and reported. */
  onBadRow?: 'error' | 'skip';
  /** Keep the first of rows that are equal in every field. Default: keep all, and count. */
  dedupe?: boolean;
  /** Kinds of rows that the caller can use; others are bad rows. Default: all. */
  kinds?: readonly Row['kind'][];
  /** The caller knows what to do with a pair that is a tie; else such a row is a bad one. */
  ties?: boolean;
  signal?: AbortSignal;
}

export interface DataReport {
  files: string[];
  /** Records in the files, without blank lines. */
  read: number;
  /** Rows handed on: read − bad − removedDuplicates. */
  kept: number;
  bad: number;
  /** The first bad rows, `maxListed` at most. */
  badRows: { origin: Origin; reason: string }[];
  /** Rows equal in every field to an earlier one. */
  duplicates: number;
  /** Of these, how many were left out (`dedupe`). */
  removedDuplicates: number;
  /** Kept pairs that are ties. */
  ties: number;
  /** Kept rows with two equal completions. */
  identical: number;
  /** Kept rows with an empty completion. */
  emptyCompletions: number;
  kinds: Record<Row['kind'], number>;
  /** Different annotators, and rows that name none. */
  annotators: number;
  withoutAnnotator: number;
  /** Annotators whose names differ only in spacing or Unicode form: probably one person. */
  similarNames: string[][];
  /** Fields that no row format has or that the row did not use, with the number of rows that hold them. */
  ignoredFields: Record<string, number>;
}

/** How many bad rows a report lists; it counts all. */
export const maxListed = 100;

/**
 * Reads and validates rows from .jsonl, .json, .csv or .parquet files, in order.
 *
 * @throws PluralignError `NOT_FOUND`, `IO`, `ABORTED`, or `BAD_DATA`: a malformed row (unless skipped), an unreadable
 * file, or no row at all
 */
export async function readRows(
  paths: string | readonly string[],
  options: ReadRowsOptions = {},
): Promise<{ rows: Row[]; report: DataReport }> {
  const files = typeof paths === 'string' ? [paths] : [...paths];
  const rows: Row[] = [];
  const report = emptyReport(files);
  const keys = new Set<string>();
  const annotators = new Set<string>();
  const ignored = new Map<string, number>();
  for await (const record of readRecords(files, { fields: rowFields })) {
    if (options.signal?.aborted) throw new PluralignError('ABORTED', 'reading the data was stopped');
    report.read += 1;
    let parsed: ReturnType<typeof parseRow>;
    try {
      parsed = parseRow(record, rows.length, options);
      checkKind(parsed.row, options);
    } catch (error) {
      if (!(error instanceof PluralignError) || options.onBadRow !== 'skip') throw error;
      report.bad += 1;
      if (report.badRows.length < maxListed) report.badRows.push({ origin: record.origin, reason: error.message });
      continue;
    }
    const { row } = parsed;
    for (const field of new Set(parsed.ignored)) ignored.set(field, (ignored.get(field) ?? 0) + 1);
    const key = rowKey(row);
    if (keys.has(key)) {
      report.duplicates += 1;
      if (options.dedupe) {
        report.removedDuplicates += 1;
        continue;
      }
    }
    keys.add(key);
    rows.push(row);
    report.kinds[row.kind] += 1;
    if (row.kind === 'pair' && row.tie) report.ties += 1;
    if (parsed.identical) report.identical += 1;
    if (parsed.emptyCompletion) report.emptyCompletions += 1;
    if (row.annotator === undefined) report.withoutAnnotator += 1;
    else annotators.add(row.annotator);
  }
  if (rows.length === 0) throw noRows(report);
  report.kept = rows.length;
  report.annotators = annotators.size;
  report.similarNames = similarNames(annotators);
  report.ignoredFields = Object.fromEntries([...ignored].sort((a, b) => b[1] - a[1]));
  return { rows, report };
}

/** What other data sets call the field `annotator`. */
const namesOfVoters = /^(annotator|worker|user|voter|rater|label+er|judge|evaluator|participant)s?([_ -]?(id|name))?$/i;

/** What a reader of the data should know, one sentence a line; nothing where all is well. */
export function dataNotes(report: DataReport): string[] {
  const notes: string[] = [];
  const note = (count: number, text: string) => {
    if (count > 0) notes.push(`${count} of ${report.read} rows ${text}`);
  };
  note(report.bad, `were left out as malformed; the first: ${report.badRows[0]?.reason}`);
  note(report.removedDuplicates, 'were left out as exact duplicates');
  note(report.duplicates - report.removedDuplicates, 'are exact duplicates of earlier ones and were kept');
  note(report.identical, 'have two equal completions, from which nothing can be learnt');
  note(report.emptyCompletions, 'have an empty completion: only its closing token is scored');
  if (report.annotators > 0) note(report.withoutAnnotator, 'name no annotator, though others do');
  for (const [field, count] of Object.entries(report.ignoredFields).slice(0, 10)) {
    const who = report.annotators === 0 && namesOfVoters.test(field) ? '; rows say who voted in "annotator"' : '';
    note(count, `have the field ${JSON.stringify(field)}, which is not used${who}`);
  }
  for (const names of report.similarNames.slice(0, 10)) {
    notes.push(
      `annotators ${names.map((name) => JSON.stringify(name)).join(' and ')} differ only in how they are spelt`,
    );
  }
  return notes;
}

function emptyReport(files: string[]): DataReport {
  return {
    files,
    read: 0,
    kept: 0,
    bad: 0,
    badRows: [],
    duplicates: 0,
    removedDuplicates: 0,
    ties: 0,
    identical: 0,
    emptyCompletions: 0,
    kinds: { pair: 0, ranking: 0, unpaired: 0, text: 0 },
    annotators: 0,
    withoutAnnotator: 0,
    similarNames: [],
    ignoredFields: {},
  };
}

const kindFields: Record<Row['kind'], string> = {
  pair: 'a pair (chosen, rejected)',
  ranking: 'a ranking (responses, ranking)',
  unpaired: 'an unpaired row (prompt, completion, label)',
  text: 'a text row (text, messages, or prompt and completion)',
};

function checkKind(row: Row, { kinds, ties }: ReadRowsOptions): void {
  if (row.kind === 'pair' && row.tie && !ties)
    throw badData(
      row.origin,
      'field "tie": found true, expected a decided vote; ties have no use here, leave them out',
    );
  if (!kinds || kinds.includes(row.kind)) return;
  const expected = kinds.map((kind) => kindFields[kind]).join(' or ');
  throw badData(row.origin, `found ${kindFields[row.kind]}, expected ${expected}`);
}

function noRows(report: DataReport): PluralignError {
  const files = report.files.length > 0 ? report.files.join(', ') : 'no files';
  const why =
    report.bad > 0 ? `all ${report.bad} rows are malformed; the first: ${report.badRows[0].reason}` : 'no rows found';
  return new PluralignError('BAD_DATA', `${files}: ${why}; expected at least one row`);
}
