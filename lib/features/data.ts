import type { ResolvedConfig } from '../config/index.js';
import { type DataReport, dataNotes, readRows, splitRows } from '../data/index.js';
import type { Row } from '../data/types.js';
import { PluralignError } from '../native/errors.js';
import { type ItemTable, itemNotes, readItems } from './items.js';
import { type Votes, votesOf } from './votes.js';

/** Votes and the rows they come from, in one order. */
export interface VoteData {
  votes: Votes;
  rows: Row[];
}

export interface FeatureData {
  table: ItemTable;
  train: VoteData;
  /** Its first annotators are those of `train`, with the same indices. */
  eval: VoteData | null;
  reports: { train: DataReport; eval: DataReport | null; items: { n: number; d: number; constant: number } };
  notes: string[];
}

/** Reads rows that name items of a table; with `skip`, rows that cannot be used are left out and noted. */
export async function readVotes(
  paths: readonly string[],
  table: ItemTable,
  options: {
    onBadRow?: 'error' | 'skip';
    dedupe?: boolean;
    annotators?: readonly string[];
    /** Keep rows that are ties; else they are left out and counted. */
    ties?: boolean;
    signal?: AbortSignal;
  } = {},
): Promise<VoteData & { report: DataReport; notes: string[] }> {
  const { onBadRow = 'error', dedupe, annotators, signal } = options;
  const reading = { items: true, onBadRow, dedupe, ties: true, signal } as const;
  const { rows: read, report } = await readRows(paths, { ...reading, kinds: ['pair', 'ranking'] });
  const rows = options.ties ? read : read.filter((row) => row.kind !== 'pair' || !row.tie);
  const notes = dataNotes(report).filter((note) => !/empty completion/.test(note));
  if (rows.length < read.length) {
    const left = read.length - rows.length;
    notes.push(`${left} rows are ties and were left out; loss.ties: davidson or rao_kupper would use them`);
  }
  const data = votesOfRows(rows, table, { onBadRow, annotators }, notes);
  return { ...data, report, notes };
}

function votesOfRows(
  rows: Row[],
  table: ItemTable,
  options: { onBadRow: 'error' | 'skip'; annotators?: readonly string[] },
  notes: string[],
): VoteData {
  const bad = new Map<Row, Error>();
  const onBadRow = options.onBadRow === 'skip' ? (row: Row, error: Error) => void bad.set(row, error) : undefined;
  const votes = votesOf(rows, table, { annotators: options.annotators, onBadRow });
  if (bad.size > 0) {
    const [first] = bad.values();
    notes.push(`${bad.size} rows were left out since they name unknown items; the first: ${first.message}`);
  }
  return { votes, rows: bad.size > 0 ? rows.filter((row) => !bad.has(row)) : rows };
}

/**
 * The items and votes of a configuration with `model: features`, split as it says. Throws what reading them throws, and
 * `BAD_DATA` where a model of annotators meets rows that name none.
 */
export async function featureData(config: ResolvedConfig, signal?: AbortSignal): Promise<FeatureData> {
  const { data } = config;
  const table = await readItems(data.items as string);
  const notes = itemNotes(table);
  const ties = config.loss.ties !== 'drop';
  const reading = { onBadRow: data.on_bad_row, dedupe: data.dedupe, ties, signal } as const;
  const read = await readVotes(data.train, table, reading);
  notes.push(...read.notes);
  const reports: FeatureData['reports'] = {
    train: read.report,
    eval: null,
    items: { n: table.n, d: table.d, constant: table.constantColumns.length },
  };
  let train: VoteData = read;
  let held: VoteData | null = null;
  if (data.split) {
    const sides = splitRows(read.rows, data.split);
    train = votesOfRows(sides.train, table, { onBadRow: 'error' }, notes);
    held = votesOfRows(sides.eval, table, { onBadRow: 'error', annotators: train.votes.annotators }, notes);
  } else if (data.eval) {
    const other = await readVotes(data.eval, table, { ...reading, annotators: train.votes.annotators });
    notes.push(...other.notes.map((n) => `evaluation: ${n}`));
    reports.eval = other.report;
    held = other;
  }
  if (train.votes.m === 0) throw new PluralignError('BAD_DATA', 'no training row is left');
  const unknown = held ? held.votes.annotators.length - train.votes.annotators.length : 0;
  if (unknown > 0) notes.push(`${unknown} annotators have rows for evaluation alone; they get the generic reward`);
  return { table, train, eval: held, reports, notes };
}
