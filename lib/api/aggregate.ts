import * as fsp from 'node:fs/promises';
import { join } from 'node:path';
import type { Matrix } from '../aggregation/regret.js';
import { type Aggregate, type AggregateOptions, aggregate, type Rule } from '../aggregation/rules.js';
import { errnoOf, ioError, makeFolder, writeFileAtomic } from '../base/files.js';
import { PluralignError } from '../native/errors.js';

interface MatrixFile {
  L: Matrix;
  beta?: number;
  /** Share of each type, [K]. */
  weights?: number[];
}

const keys = ['L', 'beta', 'weights'];

async function readMatrix(path: string): Promise<MatrixFile> {
  let text: string;
  try {
    text = await fsp.readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw ioError('read', path, error);
    throw new PluralignError('NOT_FOUND', `${path}: no such file; expected JSON such as {"L":[[0,1],[1,0]],"beta":1}`);
  }
  const bad = (message: string) => new PluralignError('BAD_DATA', `${path}: ${message}`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw bad(`is no JSON (${(error as Error).message}); expected {"L":[[…]],"beta":…}`);
  }
  if (typeof value !== 'object' || value === null || !('L' in value))
    throw bad('found no "L", expected {"L":[[…]],"beta":…}');
  const unknown = Object.keys(value).find((key) => !keys.includes(key));
  if (unknown !== undefined) throw bad(`found the key ${JSON.stringify(unknown)}, expected ${keys.join(', ')}`);
  const file = value as MatrixFile;
  if (file.beta !== undefined && !(typeof file.beta === 'number' && file.beta > 0))
    throw bad(`beta: found ${JSON.stringify(file.beta)}, expected a number above 0`);
  if (file.weights !== undefined && !Array.isArray(file.weights))
    throw bad(`weights: found ${JSON.stringify(file.weights)}, expected a list of numbers`);
  return file;
}

/**
 * `pluralign aggregate --matrix FILE`: `{"L":[[…]],"beta":…}`, with L_kk' the expected log-ratio of type k's policy on
 * samples of k''s, and `weights`, the types' shares, where a rule uses them. A matrix that is not square holds the rewards
 * of K types (rows) under J responses or policies (columns); regret then counts from a type's best column.
 *
 * Throws `NOT_FOUND`, `BAD_DATA`, `BAD_ARGUMENT`.
 */
export async function aggregateMatrix(
  path: string,
  options: { rule: Rule; output?: string } & Omit<AggregateOptions, 'typeWeights'>,
): Promise<Aggregate> {
  const { L, beta = 1, weights } = await readMatrix(path);
  let result: Aggregate;
  try {
    result = aggregate(L, beta, options.rule, { ...options, typeWeights: weights });
  } catch (error) {
    if (!(error instanceof PluralignError) || error.code !== 'BAD_DATA') throw error;
    throw new PluralignError('BAD_DATA', `${path}: ${error.message}`, { cause: error });
  }
  if (options.output !== undefined) {
    await makeFolder(options.output).catch((error) => {
      throw ioError('make the folder', options.output!, error);
    });
    await writeFileAtomic(join(options.output, 'mixture.json'), `${JSON.stringify(result, null, 2)}\n`);
  }
  return result;
}
