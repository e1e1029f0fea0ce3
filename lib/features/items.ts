import { extname } from 'node:path';
import { readRecords } from '../data/readers.js';
import type { Origin } from '../data/types.js';
import { badData, describe } from '../data/where.js';
import { readSafetensors } from '../model/safetensors.js';
import { PluralignError } from '../native/errors.js';

/** Items and their frozen features. */
export interface ItemTable {
  file: string;
  /** Names, in the table's order. */
  ids: string[];
  /** Row of each name. */
  index: Map<string, number>;
  /** [n, d], row-major, every value finite. */
  features: Float32Array;
  n: number;
  d: number;
  /** Columns with one value in every row: no reward can depend on them. */
  constantColumns: number[];
}

/**
 * Reads an item table: .jsonl or .parquet with `id` and `features` (an array of numbers), or .safetensors with
 * `features` [n, d] and the ids as a JSON array under `ids` in its metadata.
 *
 * @throws PluralignError `NOT_FOUND`, `IO`, `BAD_FILE`; `BAD_DATA` naming the row of a missing or second id, of a
 * feature that is no finite float32, or of a row that is longer or shorter than the first
 */
export async function readItems(path: string): Promise<ItemTable> {
  switch (extname(path).toLowerCase()) {
    case '.jsonl':
    case '.parquet':
      return tableOfRecords(path);
    case '.safetensors':
      return tableOfTensors(path);
    default:
      throw new PluralignError(
        'BAD_DATA',
        `${path}: expected a table of items that ends with .jsonl, .parquet or .safetensors`,
      );
  }
}

/** What a person should know of the table, one sentence each. */
export function itemNotes(table: ItemTable): string[] {
  const { constantColumns: constant, d } = table;
  if (constant.length === 0) return [];
  const some = constant.slice(0, 10).join(', ') + (constant.length > 10 ? ', …' : '');
  return [`${constant.length} of ${d} features are the same for every item, and decide nothing: columns ${some}`];
}

/** Puts a table together from names and row-major features, with the checks of `readItems`. */
export function itemTable(file: string, ids: readonly string[], features: Float32Array, d: number): ItemTable {
  const place = (row: number) => `${file}, row ${row + 1}`;
  const index = new Map<string, number>();
  for (const [row, id] of ids.entries()) {
    addId(index, id, row, place);
    for (let j = 0; j < d; j++) {
      if (!Number.isFinite(features[row * d + j])) {
        throw new PluralignError(
          'BAD_DATA',
          `${place(row)} (${JSON.stringify(id)}): features[${j}]: found ${features[row * d + j]}, expected a finite number`,
        );
      }
    }
  }
  const n = ids.length;
  return { file, ids: [...ids], index, features, n, d, constantColumns: constantColumns(features, n, d) };
}

function addId(index: Map<string, number>, id: string, row: number, place: (row: number) => string): void {
  const first = index.get(id);
  if (first !== undefined) {
    throw new PluralignError(
      'BAD_DATA',
      `${place(row)}: found the id ${JSON.stringify(id)} a second time (first at ${place(first)}), expected each id once`,
    );
  }
  index.set(id, row);
}

async function tableOfRecords(file: string): Promise<ItemTable> {
  const ids: string[] = [];
  const index = new Map<string, number>();
  const origins: Origin[] = [];
  let d = -1;
  let values = new Float32Array(0);
  for await (const { origin, value, problem } of readRecords(file, { fields: new Set(['id', 'features']) })) {
    if (problem) throw problem;
    const { id: given, features } = (value ?? {}) as { id?: unknown; features?: unknown };
    const id = itemId(origin, given);
    const seen = index.get(id);
    if (seen !== undefined) {
      throw badData(
        origin,
        `found the id ${JSON.stringify(id)} a second time (first at ${origins[seen].line}), expected each id once`,
      );
    }
    const numbers = ArrayBuffer.isView(features) ? Array.from(features as Float32Array) : features;
    if (!Array.isArray(numbers) || numbers.length === 0) {
      throw badData(origin, `field "features": found ${describe(numbers)}, expected an array of numbers`);
    }
    if (d < 0) d = numbers.length;
    if (numbers.length !== d) {
      throw badData(
        origin,
        `field "features" of ${JSON.stringify(id)}: found ${numbers.length} numbers, expected ${d} as in the first row`,
      );
    }
    const row = ids.length;
    if ((row + 1) * d > values.length) {
      const grown = new Float32Array(Math.max(2 * values.length, 64 * d));
      grown.set(values);
      values = grown;
    }
    for (let j = 0; j < d; j++) {
      const found: unknown = numbers[j];
      const x = typeof found === 'bigint' ? Number(found) : found;
      if (typeof x !== 'number' || !Number.isFinite(Math.fround(x))) {
        throw badData(
          origin,
          `field "features[${j}]" of ${JSON.stringify(id)}: found ${describe(found)}, expected a finite number`,
        );
      }
      values[row * d + j] = x;
    }
    ids.push(id);
    index.set(id, row);
    origins.push(origin);
  }
  if (ids.length === 0) throw new PluralignError('BAD_DATA', `${file}: found no items, expected at least one`);
  const n = ids.length;
  const features = values.slice(0, n * d);
  return { file, ids, index, features, n, d, constantColumns: constantColumns(features, n, d) };
}

function itemId(origin: Origin, id: unknown): string {
  if (typeof id === 'string' && id.trim() !== '') return id;
  if (typeof id === 'bigint' || (typeof id === 'number' && Number.isFinite(id))) return String(id);
  throw badData(origin, `field "id": found ${describe(id)}, expected a name`);
}

function tableOfTensors(file: string): ItemTable {
  const { metadata, tensors } = readSafetensors(file);
  const tensor = tensors.get('features');
  if (tensor?.shape.length !== 2 || tensor.shape[1] === 0) {
    const found = tensor ? `the shape [${tensor.shape.join(', ')}]` : `the tensors ${[...tensors.keys()].join(', ')}`;
    throw new PluralignError('BAD_DATA', `${file}: found ${found}, expected a tensor "features" of shape [n, d]`);
  }
  let ids: unknown;
  try {
    ids = JSON.parse(metadata.ids ?? 'null');
  } catch {
    ids = metadata.ids;
  }
  const [n, d] = tensor.shape;
  if (!Array.isArray(ids) || ids.length !== n || ids.some((id) => typeof id !== 'string' && typeof id !== 'number')) {
    throw new PluralignError(
      'BAD_DATA',
      `${file}: metadata "ids": found ${describe(ids)}, expected a JSON array of ${n} names, one for each row of features`,
    );
  }
  if (n === 0) throw new PluralignError('BAD_DATA', `${file}: found no items, expected at least one`);
  return itemTable(file, ids.map(String), tensor.data, d);
}

function constantColumns(features: Float32Array, n: number, d: number): number[] {
  if (n < 2) return [];
  const varies = new Uint8Array(d);
  for (let i = 1; i < n; i++) {
    for (let j = 0; j < d; j++) if (features[i * d + j] !== features[j]) varies[j] = 1;
  }
  return [...varies.keys()].filter((j) => varies[j] === 0);
}
