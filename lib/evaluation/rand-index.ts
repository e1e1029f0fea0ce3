import { PluralignError } from '../native/errors.js';

/**
 * Adjusted Rand index of two partitions of the same n things: 1 for the same partition, 0 expected by chance, below 0
 * for less agreement than chance. Two trivial partitions of the same form (all in one, or all apart) agree: 1.
 *
 * Source: Hubert and Arabie 1985. Throws `BAD_SHAPE` where lengths differ.
 */
export function adjustedRandIndex(a: ArrayLike<number | string>, b: ArrayLike<number | string>): number {
  if (a.length !== b.length)
    throw new PluralignError(
      'BAD_SHAPE',
      `expected two partitions of the same things, found ${a.length} and ${b.length}`,
    );
  const cells = new Map<number | string, Map<number | string, number>>();
  const columns = new Map<number | string, number>();
  for (let i = 0; i < a.length; i++) {
    const row = cells.get(a[i]) ?? new Map<number | string, number>();
    cells.set(a[i], row);
    row.set(b[i], (row.get(b[i]) ?? 0) + 1);
    columns.set(b[i], (columns.get(b[i]) ?? 0) + 1);
  }
  const pairs = (n: number) => (n * (n - 1)) / 2;
  let together = 0;
  let inA = 0;
  for (const row of cells.values()) {
    let size = 0;
    for (const n of row.values()) {
      together += pairs(n);
      size += n;
    }
    inA += pairs(size);
  }
  let inB = 0;
  for (const n of columns.values()) inB += pairs(n);
  const all = pairs(a.length);
  const expected = all === 0 ? 0 : (inA * inB) / all;
  const most = (inA + inB) / 2;
  return most === expected ? 1 : (together - expected) / (most - expected);
}
