import type { ResolvedConfig } from '../../config/index.js';
import { type DataReport, dataNotes, readRows, splitRows } from '../../data/index.js';
import type { Row } from '../../data/types.js';
import type { VoteData } from '../../features/data.js';
import { type ItemTable, itemNotes, readItems } from '../../features/items.js';
import { votesOf } from '../../features/votes.js';

export interface EmData {
  /** Without `data.items`: the ids that rows name, and no features (d = 0). */
  table: ItemTable;
  /** Items have no features: each has its own reward. */
  plain: boolean;
  train: VoteData;
  eval: VoteData | null;
  reports: { train: DataReport; eval: DataReport | null };
  notes: string[];
}

/** Items by name alone, in the order given. */
export function plainTable(file: string, ids: readonly string[]): ItemTable {
  const index = new Map(ids.map((id, i) => [id, i]));
  return { file, ids: [...ids], index, features: new Float32Array(0), n: ids.length, d: 0, constantColumns: [] };
}

function idsOf(rows: readonly Row[]): string[] {
  const ids = new Set<string>();
  for (const row of rows) {
    if (row.kind === 'pair') ids.add(row.chosen as string).add(row.rejected as string);
    else if (row.kind === 'ranking') for (const id of row.responses) ids.add(id as string);
  }
  return [...ids];
}

/** Reads rows that name items; each must name its annotator. */
export async function readEmVotes(
  paths: readonly string[],
  table: ItemTable | null,
  options: { onBadRow?: 'error' | 'skip'; dedupe?: boolean; annotators?: readonly string[]; signal?: AbortSignal } = {},
): Promise<VoteData & { table: ItemTable; report: DataReport; notes: string[] }> {
  const { onBadRow = 'error', dedupe, annotators, signal } = options;
  const read = await readRows(paths, { items: true, kinds: ['pair', 'ranking'], onBadRow, dedupe, signal });
  const notes = dataNotes(read.report).filter((note) => !/empty completion/.test(note));
  const items = table ?? plainTable(paths.join(', '), idsOf(read.rows));
  const bad = new Map<Row, Error>();
  const skip = onBadRow === 'skip' ? (row: Row, error: Error) => void bad.set(row, error) : undefined;
  const votes = votesOf(read.rows, items, { annotators, named: true, onBadRow: skip });
  if (bad.size > 0)
    notes.push(
      `${bad.size} rows were left out: unknown items or no annotator; the first: ${[...bad.values()][0].message}`,
    );
  return { table: items, votes, rows: read.rows.filter((row) => !bad.has(row)), report: read.report, notes };
}

/** The items and votes of a configuration, split as it says. Throws what reading them throws. */
export async function emData(config: ResolvedConfig, signal?: AbortSignal): Promise<EmData> {
  const { data } = config;
  const given = data.items === null ? null : await readItems(data.items);
  const reading = { onBadRow: data.on_bad_row, dedupe: data.dedupe, signal } as const;
  const read = await readEmVotes(data.train, given, reading);
  const { table } = read;
  const notes = [...(given ? itemNotes(given) : []), ...read.notes];
  const reports: EmData['reports'] = { train: read.report, eval: null };
  let train: VoteData = read;
  let held: VoteData | null = null;
  if (data.split) {
    const sides = splitRows(read.rows, data.split);
    train = { rows: sides.train, votes: votesOf(sides.train, table) };
    held = { rows: sides.eval, votes: votesOf(sides.eval, table) };
  } else if (data.eval) {
    const other = await readEmVotes(data.eval, table, reading);
    notes.push(...other.notes.map((n) => `evaluation: ${n}`));
    reports.eval = other.report;
    held = other;
  }
  return { table, plain: given === null, train, eval: held, reports, notes };
}
