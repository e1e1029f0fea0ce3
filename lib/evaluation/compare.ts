import { PluralignError } from '../native/errors.js';
import { type Interval, pairedBootstrap } from './bootstrap.js';
import type { Evaluation, PreferenceMetrics } from './preference.js';

/** How much better one model judges the same votes than another, by voter. */
export interface Comparison {
  /** Pairs of evaluations: the same two models, trained with so many seeds. */
  seeds: number;
  /** Voters of all seeds. */
  voters: number;
  /** Accuracy of one less that of the other, mean over voters, with a 95 % interval. */
  accuracy: Interval;
  /** Null where one model has a likelihood for ties and the other none. */
  log_likelihood: Interval | null;
}

/**
 * Paired differences by voter with a bootstrap over seeds and voters (`pairedBootstrap`). Each pair are evaluations of two
 * models on the same rows.
 *
 * @throws PluralignError `BAD_DATA` where rows name no annotator, or where the two were judged on other rows
 */
export function compareEvaluations(pairs: readonly (readonly [Evaluation, Evaluation])[]): Comparison {
  const seeds = pairs.map(([one, other]) => {
    const names = [...new Set([...Object.keys(one.annotators), ...Object.keys(other.annotators)])];
    if (names.length === 0)
      throw new PluralignError('BAD_DATA', 'no row names an annotator, expected "annotator" to compare voter by voter');
    return names.map((name) => [one.annotators[name], other.annotators[name], name] as const);
  });
  const decided = ({ rows, ties = 0 }: PreferenceMetrics) => rows - ties;
  let alike = true;
  for (const [a, b, name] of seeds.flat()) {
    if (!a || !b || decided(a) !== decided(b)) {
      const found = `${a ? decided(a) : 0} decided rows against ${b ? decided(b) : 0}`;
      throw new PluralignError('BAD_DATA', `${JSON.stringify(name)}: found ${found}, expected the same rows`);
    }
    if (a.rows !== b.rows) alike = false;
  }
  const differ = (of: (metrics: PreferenceMetrics) => number, counts: (metrics: PreferenceMetrics) => boolean) =>
    pairedBootstrap(seeds.map((voters) => voters.filter(([a]) => counts(a)).map(([a, b]) => of(a) - of(b))));
  return {
    seeds: pairs.length,
    voters: seeds.flat().length,
    // A voter with nothing but ties has no accuracy.
    accuracy: differ(
      (m) => m.accuracy,
      (m) => decided(m) > 0,
    ),
    log_likelihood: alike
      ? differ(
          (m) => m.log_likelihood,
          () => true,
        )
      : null,
  };
}
