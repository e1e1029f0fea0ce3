import * as fsp from 'node:fs/promises';
import { join } from 'node:path';
import { parse } from 'csv-parse/sync';
import { errnoOf, ioError, writeFileAtomic } from '../base/files.js';
import { readSafetensors, writeSafetensors } from '../model/safetensors.js';
import { PluralignError } from '../native/errors.js';

/** The types of a run: types.safetensors. */
export interface TypesFile {
  /** K arrays [d] */
  rewards: Float64Array[];
  /** [K] */
  weights: Float64Array;
  /** Ids of plain items, whose rewards these are; null where rewards are on features. */
  items: string[] | null;
}

export function typesPath(run: string): string {
  return join(run, 'types.safetensors');
}

export function responsibilitiesPath(run: string): string {
  return join(run, 'responsibilities.csv');
}

/** `types` without rewards: those of policies, which have their adapters. */
export async function writeTypes(
  path: string,
  types: TypesFile | { weights: ArrayLike<number>; rewards: null },
): Promise<void> {
  const { rewards, weights } = types;
  const tensors = [{ name: 'weights', shape: [weights.length], data: Float32Array.from(weights) }];
  if (rewards) {
    const d = rewards[0].length;
    const data = new Float32Array(rewards.length * d);
    rewards.forEach((beta, k) => {
      data.set(beta, k * d);
    });
    tensors.unshift({ name: 'rewards', shape: [rewards.length, d], data });
  }
  await writeSafetensors(path, tensors, rewards && types.items ? { ids: JSON.stringify(types.items) } : {});
}

/** Throws `NOT_FOUND`, `BAD_FILE`, `BAD_DATA` where it is not what `writeTypes` writes. */
export function readTypes(path: string): TypesFile {
  const { tensors, metadata } = readSafetensors(path);
  const rewards = tensors.get('rewards');
  const weights = tensors.get('weights');
  if (rewards?.shape.length !== 2 || weights?.shape.length !== 1 || weights.shape[0] !== rewards.shape[0])
    throw new PluralignError('BAD_DATA', `${path}: expected tensors rewards [K, d] and weights [K]`);
  const [types, d] = rewards.shape;
  return {
    rewards: Array.from({ length: types }, (_, k) => Float64Array.from(rewards.data.subarray(k * d, (k + 1) * d))),
    weights: Float64Array.from(weights.data),
    items: metadata.ids === undefined ? null : (JSON.parse(metadata.ids) as string[]),
  };
}

/** The types' weights alone, [K]. Throws what `readTypes` throws of them. */
export function readTypeWeights(path: string): Float64Array {
  const weights = readSafetensors(path).tensors.get('weights');
  if (weights?.shape.length !== 1) throw new PluralignError('BAD_DATA', `${path}: expected a tensor weights [K]`);
  return Float64Array.from(weights.data);
}

/** One annotator's line of responsibilities.csv. */
export interface Responsibility {
  annotator: string;
  /** [K], sum 1 */
  probabilities: number[];
  votes: number;
}

const quoted = (text: string) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** annotator, type_1 … type_K, votes, certainty (the largest probability). */
export function responsibilitiesCsv(lines: readonly Responsibility[]): string {
  const types = lines[0]?.probabilities.length ?? 0;
  const head = ['annotator', ...Array.from({ length: types }, (_, k) => `type_${k + 1}`), 'votes', 'certainty'];
  const body = lines.map(({ annotator, probabilities, votes }) =>
    [quoted(annotator), ...probabilities, votes, Math.max(...probabilities)].join(','),
  );
  return `${[head.join(','), ...body].join('\n')}\n`;
}

export async function writeResponsibilities(path: string, lines: readonly Responsibility[]): Promise<void> {
  await writeFileAtomic(path, responsibilitiesCsv(lines));
}

/**
 * Reads responsibilities.csv; probabilities are scaled to sum 1. Columns behind the types may be missing. Throws
 * `NOT_FOUND`, `BAD_DATA` naming line and column: a second line for an annotator, a number that is no probability, or a
 * line whose probabilities are all 0.
 */
export async function readResponsibilities(path: string): Promise<Map<string, number[]>> {
  let text: string;
  try {
    text = await fsp.readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw ioError('read', path, error);
    throw new PluralignError('NOT_FOUND', `${path}: no such file; expected responsibilities of annotators`);
  }
  const bad = (message: string) => new PluralignError('BAD_DATA', `${path}${message}`);
  let records: { record: string[]; info: { lines: number } }[];
  try {
    records = parse(text, { bom: true, info: true, skip_empty_lines: true }) as unknown as typeof records;
  } catch (error) {
    throw bad(`: ${(error as Error).message}`);
  }
  const head = records[0]?.record ?? [];
  const columns = head.flatMap((name, i) => (i > 0 && name !== 'votes' && name !== 'certainty' ? [i] : []));
  if (head[0] !== 'annotator' || columns.length === 0)
    throw bad(`: found the columns ${head.join(', ')}, expected annotator, one column for each type, votes, certainty`);
  const out = new Map<string, number[]>();
  for (const { record, info } of records.slice(1)) {
    const name = record[0];
    const values = columns.map((c) => {
      const value = record[c].trim() === '' ? Number.NaN : Number(record[c]);
      if (!(value >= 0) || !Number.isFinite(value))
        throw bad(`, line ${info.lines}: ${head[c]}: found ${JSON.stringify(record[c])}, expected a probability`);
      return value;
    });
    const sum = values.reduce((a, b) => a + b, 0);
    if (!(sum > 0)) throw bad(`, line ${info.lines}: ${JSON.stringify(name)} has probability 0 for every type`);
    if (out.has(name)) throw bad(`, line ${info.lines}: found ${JSON.stringify(name)} a second time`);
    out.set(
      name,
      values.map((value) => value / sum),
    );
  }
  return out;
}
