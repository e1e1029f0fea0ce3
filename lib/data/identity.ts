import { createHash } from 'node:crypto';
import type { Row } from './types.js';

/** All that a row says but where it stood: equal for exact duplicates. 128 bits of SHA-256, as 16 one-byte characters. */
export function rowKey(row: Row): string {
  return digest(contents(row)).toString('latin1', 0, 16);
}

/** Contents in a fixed order of fields, so that the order in the file does not count. */
export function contents(row: Row): string {
  const shared = [row.kind, row.annotator ?? null, row.group ?? null, row.weight, row.prompt];
  switch (row.kind) {
    case 'pair':
      return JSON.stringify([...shared, row.chosen, row.rejected, row.margin ?? null, row.tie ?? false]);
    case 'ranking':
      return JSON.stringify([...shared, row.responses, row.ranking]);
    case 'unpaired':
      return JSON.stringify([...shared, row.completion, row.label]);
    case 'text':
      return JSON.stringify([...shared, row.completion]);
  }
}

export function digest(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}

/** A name without what the eye does not see: Unicode form, width, spacing, joiners. Case counts. */
export function foldName(name: string): string {
  return name
    .normalize('NFKC')
    .replace(/[\p{Cf}\p{Cc}]/gu, (character) => (/\s/.test(character) ? ' ' : ''))
    .replace(/\s+/gu, ' ')
    .trim();
}

/** Groups of different names that look the same. */
export function similarNames(names: Iterable<string>): string[][] {
  const groups = new Map<string, string[]>();
  for (const name of names) {
    const key = foldName(name);
    const group = groups.get(key);
    if (group) group.push(name);
    else groups.set(key, [name]);
  }
  return [...groups.values()].filter((group) => group.length > 1);
}
