import type { Row } from '../data/types.js';
import { badData } from '../data/where.js';
import type { ItemTable } from './items.js';

/** Votes over items as typed arrays: m votes of N annotators, T places in all. */
export interface Votes {
  /** Names, in the order they were first met; a table handed to `votesOf` comes first. */
  annotators: string[];
  /** [m] index of the annotator, or −1 where the row names none. */
  annotator: Int32Array;
  /** [m + 1] where a vote's places begin in `items`. */
  offsets: Int32Array;
  /** [T] rows of the item table: best first, those that were not ranked last. A pair is [chosen, rejected]. */
  items: Int32Array;
  /** [m] choices made one after another (Plackett–Luce stages), places − 1 at most; 1 for a pair, 0 for one that is a tie. */
  stages: Int32Array;
  /** [m] weight in every loss. */
  weights: Float64Array;
  /** [m] Bradley–Terry margin of a pair: the choice needs r₊ − r₋ above it; 0 unless the row has one. */
  margins: Float64Array;
  /** [m] the rows' own index, for messages. */
  rows: Int32Array;
  m: number;
  /** Davidson's ν of a model in which a pair with no stage is a tie; absent: such pairs say nothing. */
  tie?: number;
}

export interface VotesOptions {
  /** Annotators that have their index already; new ones come behind. */
  annotators?: readonly string[];
  /** Refuse rows that name no annotator; else they get −1. */
  named?: boolean;
  /** Called with a row that cannot be used, which is then left out; default: the error is thrown. */
  onBadRow?: (row: Row, error: Error) => void;
}

/**
 * Rows that name items (`readRows` with `items: true`), pairs and rankings of any length, as typed arrays.
 *
 * @throws PluralignError `BAD_DATA` naming file and line: an item that the table does not have, a row that is neither pair
 * nor ranking, or (with `named`) no annotator
 */
export function votesOf(rows: readonly Row[], table: ItemTable, options: VotesOptions = {}): Votes {
  const annotators = [...(options.annotators ?? [])];
  const known = new Map(annotators.map((name, i) => [name, i]));
  const kept: { row: Row; places: number[]; stages: number }[] = [];
  let places = 0;
  for (const row of rows) {
    try {
      if (options.named && row.annotator === undefined) {
        throw badData(row.origin, 'field "annotator": found nothing, expected a name');
      }
      const vote = { row, ...order(row, table) };
      kept.push(vote);
      places += vote.places.length;
    } catch (error) {
      if (!options.onBadRow) throw error;
      options.onBadRow(row, error as Error);
    }
  }
  const m = kept.length;
  const votes: Votes = {
    annotators,
    annotator: new Int32Array(m),
    offsets: new Int32Array(m + 1),
    items: new Int32Array(places),
    stages: new Int32Array(m),
    weights: new Float64Array(m),
    margins: new Float64Array(m),
    rows: new Int32Array(m),
    m,
  };
  for (const [v, { row, places: ordered, stages }] of kept.entries()) {
    let annotator = -1;
    if (row.annotator !== undefined) {
      annotator = known.get(row.annotator) ?? annotators.length;
      if (annotator === annotators.length) {
        annotators.push(row.annotator);
        known.set(row.annotator, annotator);
      }
    }
    votes.annotator[v] = annotator;
    votes.items.set(ordered, votes.offsets[v]);
    votes.offsets[v + 1] = votes.offsets[v] + ordered.length;
    votes.stages[v] = stages;
    votes.weights[v] = row.weight;
    votes.margins[v] = row.kind === 'pair' ? (row.margin ?? 0) : 0;
    votes.rows[v] = row.index;
  }
  return votes;
}

/** Each annotator's votes: those of u are `votes[offsets[u]]` … `votes[offsets[u + 1] − 1]`. Votes without one are left out. */
export function votesByAnnotator(
  votes: Votes,
  count = votes.annotators.length,
): { offsets: Int32Array; votes: Int32Array } {
  const offsets = new Int32Array(count + 1);
  for (const u of votes.annotator) if (u >= 0 && u < count) offsets[u + 1]++;
  for (let u = 0; u < count; u++) offsets[u + 1] += offsets[u];
  const next = offsets.slice(0, count);
  const sorted = new Int32Array(offsets[count]);
  for (let v = 0; v < votes.m; v++) {
    const u = votes.annotator[v];
    if (u >= 0 && u < count) sorted[next[u]++] = v;
  }
  return { offsets, votes: sorted };
}

/** The votes at `indices` over a table of only the items that they name, in the order they are first named. */
export function subTable(
  table: Pick<ItemTable, 'features' | 'n' | 'd'>,
  votes: Votes,
  indices: Int32Array,
): { table: Pick<ItemTable, 'features' | 'n' | 'd'>; votes: Votes; items: Int32Array } {
  const { d } = table;
  const rows = new Map<number, number>();
  const offsets = new Int32Array(indices.length + 1);
  for (const [i, v] of indices.entries()) offsets[i + 1] = offsets[i] + votes.offsets[v + 1] - votes.offsets[v];
  const items = new Int32Array(offsets[indices.length]);
  for (const [i, v] of indices.entries()) {
    for (let s = 0; s < offsets[i + 1] - offsets[i]; s++) {
      const item = votes.items[votes.offsets[v] + s];
      let row = rows.get(item);
      if (row === undefined) {
        row = rows.size;
        rows.set(item, row);
      }
      items[offsets[i] + s] = row;
    }
  }
  const features = new Float32Array(rows.size * d);
  for (const [item, row] of rows) features.set(table.features.subarray(item * d, (item + 1) * d), row * d);
  return {
    table: { features, n: rows.size, d },
    items: Int32Array.from(rows.keys()),
    votes: { ...subVotes(votes, indices), items },
  };
}

/** The votes at `indices`, in that order, over the same items and annotators. */
export function subVotes(votes: Votes, indices: Int32Array): Votes {
  const offsets = new Int32Array(indices.length + 1);
  for (const [i, v] of indices.entries()) offsets[i + 1] = offsets[i] + votes.offsets[v + 1] - votes.offsets[v];
  const items = new Int32Array(offsets[indices.length]);
  for (const [i, v] of indices.entries()) {
    items.set(votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]), offsets[i]);
  }
  return {
    annotators: votes.annotators,
    annotator: Int32Array.from(indices, (v) => votes.annotator[v]),
    offsets,
    items,
    stages: Int32Array.from(indices, (v) => votes.stages[v]),
    weights: Float64Array.from(indices, (v) => votes.weights[v]),
    margins: Float64Array.from(indices, (v) => votes.margins[v]),
    rows: Int32Array.from(indices, (v) => votes.rows[v]),
    m: indices.length,
    ...(votes.tie ? { tie: votes.tie } : {}),
  };
}

/** The votes of annotators from one place up to another, who are then counted from 0; `by` as `votesByAnnotator` gives it. */
export function votesOfSome(
  votes: Votes,
  by: { offsets: Int32Array; votes: Int32Array },
  first: number,
  last: number,
): Votes {
  const own = subVotes(votes, by.votes.subarray(by.offsets[first], by.offsets[last]));
  return {
    ...own,
    annotators: votes.annotators.slice(first, last),
    annotator: own.annotator.map((u) => u - first),
  };
}

/** A vote's items in the order of the choice. */
function order(row: Row, table: ItemTable): { places: number[]; stages: number } {
  if (row.kind === 'pair') {
    return {
      places: [find(row, 'chosen', row.chosen, table), find(row, 'rejected', row.rejected, table)],
      stages: row.tie ? 0 : 1,
    };
  }
  if (row.kind === 'ranking') {
    const items = row.responses.map((response, i) => find(row, `responses[${i}]`, response, table));
    const ranked = new Set(row.ranking);
    const rest = items.filter((_, i) => !ranked.has(i));
    return {
      places: [...row.ranking.map((i) => items[i]), ...rest],
      stages: Math.min(row.ranking.length, items.length - 1),
    };
  }
  throw badData(row.origin, 'expected a pair (chosen, rejected) or a ranking (responses, ranking) of items');
}

function find(row: Row, field: string, id: unknown, table: ItemTable): number {
  const index = table.index.get(id as string);
  if (index !== undefined) return index;
  throw badData(
    row.origin,
    `field "${field}": found ${JSON.stringify(id)}, expected the id of one of the ${table.n} items of ${table.file}`,
  );
}
