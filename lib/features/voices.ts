import { Fields } from '../data/fields.js';
import { readRecords } from '../data/readers.js';

/** Whose rewards count how much in one reward for all. */
export interface Voices {
  /** [N] weights of the voters; 0 for whom no row names. */
  weights: Float64Array;
  /** [N] names of groups, where the rows have them. */
  groups?: (string | undefined)[];
}

/**
 * Reads rows of `annotator` with a `weight` (1 where there is none), and a `group` where voters are to count by groups.
 *
 * @param index the population's, by name
 * @throws PluralignError `BAD_DATA` for a row without annotator, one of nobody in the run or named before, and for rows of
 * which only some have a group
 */
export async function readVoices(paths: readonly string[], index: ReadonlyMap<string, number>): Promise<Voices> {
  const weights = new Float64Array(index.size);
  const groups = new Array<string | undefined>(index.size);
  const seen = new Set<number>();
  let grouped: boolean | undefined;
  for await (const record of readRecords(paths)) {
    if (record.problem) throw record.problem;
    const fields = new Fields(record.value, record.origin);
    const name = fields.name('annotator');
    const u = name === undefined ? undefined : index.get(name);
    if (u === undefined) return fields.fail('annotator', fields.get('annotator'), 'an annotator of the run');
    if (seen.has(u)) fields.fail('annotator', name, 'every annotator once');
    seen.add(u);
    weights[u] = fields.number('weight', 'a finite number of 0 or more', (value) => value >= 0) ?? 1;
    groups[u] = fields.name('group');
    grouped ??= groups[u] !== undefined;
    if (grouped !== (groups[u] !== undefined))
      fields.fail('group', fields.get('group'), grouped ? 'a group, as rows before have one' : 'none, as before');
  }
  return grouped ? { weights, groups } : { weights };
}
