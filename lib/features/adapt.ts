import { resolve } from 'node:path';
import type { PreferenceMetrics } from '../evaluation/preference.js';
import { PluralignError } from '../native/errors.js';
import { lockRun } from '../training/lock.js';
import { readVotes } from './data.js';
import { evaluateVotes } from './evaluate.js';
import { openFeatureRun } from './run.js';
import { populationPath } from './train.js';
import { votesByAnnotator } from './votes.js';

export interface AdaptOptions {
  run: string;
  votes: readonly string[];
  /** Another table of items than the run's. */
  items?: string;
  /** Fit annotators anew whom the run has; else they are refused. */
  replace?: boolean;
  signal?: AbortSignal;
  note?: (text: string) => void;
}

export interface AdaptResult {
  run: string;
  /** Annotators in the run now. */
  population: number;
  /** By new annotator: what was fitted, and how it describes the votes it was fitted to. */
  annotators: Record<
    string,
    { votes: number; own: number[]; steps: number; milliseconds: number } & Omit<PreferenceMetrics, 'rows'>
  >;
  paths: { run: string; model: string };
}

/**
 * Adds annotators to a run of rewards on features: fits only what is theirs, with everything shared held fixed, and
 * replaces the run's file in one step. The numbers of all others keep their bits.
 *
 * @throws PluralignError `BAD_DATA` for a row without annotator or with an unknown item, and for an annotator whom the
 * run has already (without `replace`); `BUSY` while another process writes in the run
 */
export async function adapt(options: AdaptOptions): Promise<AdaptResult> {
  const dir = resolve(options.run);
  let { population, table } = await openFeatureRun(dir, options.items);
  const lock = await lockRun(dir);
  try {
    ({ population, table } = await openFeatureRun(dir, options.items));
    const { votes, rows, notes } = await readVotes(options.votes, table, { signal: options.signal });
    for (const text of notes) options.note?.(text);
    const nameless = rows.find((row) => row.annotator === undefined);
    if (nameless) {
      const { file, line } = nameless.origin;
      throw new PluralignError('BAD_DATA', `${file}, line ${line}: field "annotator": found nothing, expected a name`);
    }
    const known = votes.annotators.filter((name) => population.index.has(name));
    if (known.length > 0 && !options.replace) {
      throw new PluralignError(
        'BAD_DATA',
        `${known.map((name) => JSON.stringify(name)).join(', ')}: in the run already; give --replace to fit them anew`,
      );
    }
    const by = votesByAnnotator(votes);
    const fitted = votes.annotators.map((_, u) =>
      population.fitOwn(table, votes, by.votes.subarray(by.offsets[u], by.offsets[u + 1])),
    );
    for (const [u, name] of votes.annotators.entries()) population = population.with(name, fitted[u].own);
    await population.save(populationPath(dir));
    const indices = votes.annotator.map((u) => population.index.get(votes.annotators[u]) as number);
    const scorer = population.scorer(table);
    const judged = evaluateVotes(
      { votes: { ...votes, annotator: indices }, rows },
      population.annotators.length,
      scorer,
    );
    const annotators: AdaptResult['annotators'] = {};
    for (const [u, name] of votes.annotators.entries()) {
      const { rows: count, ...metrics } = judged.annotators[name];
      const { own, steps, milliseconds } = fitted[u];
      annotators[name] = { votes: count, own: [...own], steps, milliseconds, ...metrics };
    }
    return {
      run: dir,
      population: population.annotators.length,
      annotators,
      paths: { run: dir, model: populationPath(dir) },
    };
  } finally {
    await lock.release();
  }
}
