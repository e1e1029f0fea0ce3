import { PluralignError } from '../native/errors.js';
import { readResponsibilities } from './files.js';

/** Responsibilities of a file, in the votes' order of annotators. */
export async function startFrom(path: string, types: number, annotators: readonly string[]): Promise<Float64Array[]> {
  const given = await readResponsibilities(path);
  const columns = [...given.values()][0]?.length ?? 0;
  if (columns !== types)
    throw new PluralignError('BAD_CONFIG', `${path}: found ${columns} types, expected ${types} as in em.types`);
  const names = new Set(annotators);
  const unknown = [...given.keys()].filter((name) => !names.has(name));
  if (unknown.length > 0)
    throw new PluralignError(
      'BAD_DATA',
      `${path}: ${unknown.length} names have no votes, the first ${JSON.stringify(unknown[0])}; expected annotators of the data`,
    );
  const missing = annotators.filter((name) => !given.has(name));
  if (missing.length > 0)
    throw new PluralignError(
      'BAD_DATA',
      `${path}: ${missing.length} annotators have no line, the first ${JSON.stringify(missing[0])}; expected one for each`,
    );
  return Array.from({ length: types }, (_, k) => Float64Array.from(annotators, (name) => given.get(name)![k]));
}
