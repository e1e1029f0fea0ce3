import { PluralignError } from '../native/errors.js';
import { contents, digest, foldName } from './identity.js';
import type { Row } from './types.js';
import { badData } from './where.js';

export interface SplitOptions {
  /** What must not stand on both sides: an annotator, a prompt, or a row (with its exact duplicates). */
  by: 'annotator' | 'prompt' | 'row';
  /** Share of the different annotators, prompts or rows that is held out, in (0, 1). */
  eval: number;
  /** An integer; default 0. */
  seed?: number;
}

/**
 * Splits rows into a training and an evaluation side, each in the rows' order.
 *
 * Every different key (annotator, prompt or row) is hashed with the seed, and the `eval` share with the smallest hashes,
 * rounded, at least one and not all, is held out. The outcome depends on which keys there are, not on the rows' order or
 * number. Names of annotators that differ only in spelling (spacing, Unicode form) count as one key. A prompt that was
 * extracted from two texts is what the two share: write prompts out where the split has to be by prompt.
 *
 * @throws PluralignError `BAD_ARGUMENT` for bad options; `BAD_DATA` where a side would be empty (fewer than two keys), or
 * a row names no annotator and the split is by annotator
 */
export function splitRows<T extends Row>(rows: readonly T[], options: SplitOptions): { train: T[]; eval: T[] } {
  const { by, eval: share, seed = 0 } = options;
  if (!(typeof share === 'number' && share > 0 && share < 1)) {
    throw new PluralignError(
      'BAD_ARGUMENT',
      `split eval: found ${share}, expected a share between 0 and 1, such as 0.1`,
    );
  }
  if (!Number.isSafeInteger(seed)) {
    throw new PluralignError('BAD_ARGUMENT', `split seed: found ${seed}, expected an integer`);
  }
  const keys = rows.map(keyOf(by));
  const hashes = new Map<string, string>();
  for (const key of keys) {
    if (!hashes.has(key)) hashes.set(key, digest(`${seed}\0${by}\0${key}`).toString('hex'));
  }
  if (hashes.size < 2) {
    const found = hashes.size === 0 ? 'no rows' : `only one ${by} in ${rows.length} rows`;
    throw new PluralignError(
      'BAD_DATA',
      `split by ${by}: found ${found}, expected at least two, so that neither side is empty; split by something else`,
    );
  }
  const order = [...hashes].sort(([, a], [, b]) => (a < b ? -1 : a > b ? 1 : 0));
  const count = Math.min(order.length - 1, Math.max(1, Math.round(share * order.length)));
  const held = new Set(order.slice(0, count).map(([key]) => key));
  return { train: rows.filter((_, i) => !held.has(keys[i])), eval: rows.filter((_, i) => held.has(keys[i])) };
}

function keyOf(by: SplitOptions['by']): (row: Row) => string {
  switch (by) {
    case 'annotator':
      return (row) => {
        if (row.annotator === undefined) {
          throw badData(
            row.origin,
            'field "annotator": found nothing, expected a name, since the split is by annotator',
          );
        }
        return foldName(row.annotator);
      };
    case 'prompt':
      return (row) => JSON.stringify(row.prompt);
    case 'row':
      return contents;
    default:
      throw new PluralignError('BAD_ARGUMENT', `split by: found ${by}, expected annotator, prompt or row`);
  }
}
