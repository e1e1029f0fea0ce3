import type { Group } from '../../data/types.js';
import { PluralignError } from '../../native/errors.js';

/** Who gave which rows. */
export interface Annotators {
  /** In the order they are first met. */
  names: string[];
  /** Index of each row's annotator, [rows]. */
  of: Int32Array;
  /** Rows of each, [names]. */
  votes: Int32Array;
}

/** Throws BAD_DATA naming the first row without an annotator: nobody's vote tells nothing of anyone's type. */
export function annotatorsOf(groups: readonly Group[]): Annotators {
  const index = new Map<string, number>();
  const of = Int32Array.from(groups, ({ annotator, origin }) => {
    if (annotator === undefined)
      throw new PluralignError(
        'BAD_DATA',
        `${origin.file}:${origin.line}: field "annotator": found nothing, expected a name; types are of annotators`,
      );
    const known = index.get(annotator);
    if (known !== undefined) return known;
    index.set(annotator, index.size);
    return index.size - 1;
  });
  const votes = new Int32Array(index.size);
  for (const u of of) votes[u]++;
  return { names: [...index.keys()], of, votes };
}
