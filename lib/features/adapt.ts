import { resolve } from 'node:path';
import type { PreferenceMetrics } from '../evaluation/preference.js';
import { PluralignError } from '../native/errors.js';
import { lockRun } from '../training/lock.js';
import { readVotes } from './data.js';
import { evaluateVotes } from './evaluate.js';
import type { ItemTable } from './items.js';
import type { Population } from './population.js';
import { nextQuestions, type Question } from './posterior.js';
import { openFeatureRun } from './run.js';
import { populationPath } from './train.js';
import { votesByAnnotator } from './votes.js';

export interface AdaptOptions {
  run: string;
  votes: readonly string[];
  /** Questions to ask next, of each annotator in `votes` and those of `annotators`. */
  next?: number;
  /** Annotators to ask; one whom the run does not know is asked what tells most of anyone. */
  annotators?: readonly string[];
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
  /** By annotator: the pairs whose answers would tell most, best first. */
  next?: Record<string, Question[]>;
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
  const path = populationPath(dir);
  if (options.votes.length === 0 && !options.next) {
    throw new PluralignError('BAD_ARGUMENT', 'found neither votes nor a number of questions to ask next');
  }
  let { population, table } = await openFeatureRun(dir, options.items);
  const lock = await lockRun(dir);
  try {
    ({ population, table } = await openFeatureRun(dir, options.items));
    if (options.votes.length === 0) {
      const next = questions(options, population, table, []);
      return {
        run: dir,
        population: population.annotators.length,
        annotators: {},
        next,
        paths: { run: dir, model: path },
      };
    }
    const { votes, rows, notes } = await readVotes(options.votes, table, {
      ties: population.ties !== null,
      signal: options.signal,
    });
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
    // Before anything is written: a model that cannot say what to ask refuses here.
    if (options.next) nextQuestions(population, table, -1, options.next);
    const by = votesByAnnotator(votes);
    const fitted = votes.annotators.map((_, u) =>
      population.fitOwn(table, votes, by.votes.subarray(by.offsets[u], by.offsets[u + 1])),
    );
    for (const [u, name] of votes.annotators.entries()) {
      population = population.with(name, fitted[u].own, fitted[u].factor);
    }
    await population.save(path);
    const indices = votes.annotator.map((u) => population.index.get(votes.annotators[u]) as number);
    const scorer = population.scorer(table);
    const judged = evaluateVotes(
      { votes: { ...votes, annotator: indices }, rows },
      population.annotators.length,
      scorer,
      population.ties,
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
      paths: { run: dir, model: path },
      ...(options.next ? { next: questions(options, population, table, votes.annotators) } : {}),
    };
  } finally {
    await lock.release();
  }
}

function questions(
  { next, annotators = [] }: AdaptOptions,
  population: Population,
  table: ItemTable,
  voters: readonly string[],
): Record<string, Question[]> {
  const names = new Set([...voters, ...annotators]);
  return Object.fromEntries(
    [...names].map((name) => [
      name,
      nextQuestions(population, table, population.index.get(name) ?? -1, next as number),
    ]),
  );
}
