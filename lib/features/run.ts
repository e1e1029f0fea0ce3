import { existsSync } from 'node:fs';
import { loadConfig, type ResolvedConfig, runConfigPath } from '../config/index.js';
import type { Evaluation } from '../evaluation/preference.js';
import { PluralignError } from '../native/errors.js';
import { requireRun } from '../training/run-folder.js';
import { readVotes } from './data.js';
import { evaluateVotes } from './evaluate.js';
import { aggregateScorer } from './everyone.js';
import { type ItemTable, readItems } from './items.js';
import { bestOf, lowerConfidence } from './pessimism.js';
import { Population, type Scorer } from './population.js';
import { populationPath } from './train.js';
import { readVoices } from './voices.js';

/** Whether a run folder was trained with `method: reward` and `model: features`. */
export async function isFeatureRun(run: string): Promise<boolean> {
  await requireRun(run);
  const config = loadConfig(runConfigPath(run));
  return config.model === 'features' && config.method === 'reward';
}

export interface FeatureRun {
  config: ResolvedConfig;
  table: ItemTable;
  population: Population;
}

/** Everyone a run knows (or of them those named), and its items (or those of another table). Throws `BAD_CONFIG` for a run that is none of these. */
export async function openFeatureRun(run: string, items?: string, names?: Iterable<string>): Promise<FeatureRun> {
  if (!(await isFeatureRun(run))) {
    throw new PluralignError('BAD_CONFIG', `${run}: expected a run of method reward with model: features`);
  }
  const config = loadConfig(runConfigPath(run));
  const path = populationPath(run);
  if (!existsSync(path)) {
    throw new PluralignError(
      'NOT_FOUND',
      `${run} has no features.safetensors yet: the run is not finished; train it again`,
    );
  }
  const population = Population.load(path, names);
  return { config, population, table: await readItems(items ?? (config.data.items as string)) };
}

/**
 * `eval --run` of rewards on features. Annotators whom the run does not know get the generic reward; `policies.generic` is
 * the same rows all under it.
 */
export async function evalFeatures(
  run: string,
  data: readonly string[],
  options: { signal?: AbortSignal; note?: (text: string) => void } = {},
): Promise<Evaluation & { policies?: Record<string, Evaluation> }> {
  const { population, table } = await openFeatureRun(run);
  const { annotators } = population;
  const votes = await readVotes(data, table, {
    annotators,
    ties: population.ties !== null,
    signal: options.signal,
  });
  for (const text of votes.notes) options.note?.(text);
  const unknown = votes.votes.annotators.length - annotators.length;
  if (unknown > 0) options.note?.(`${unknown} annotators are not in the run and get the generic reward`);
  const judge = (known: number) => evaluateVotes(votes, known, population.scorer(table), population.ties);
  const own = judge(annotators.length);
  return population.model.own === 0 ? own : { ...own, policies: { generic: judge(0), features: own } };
}

async function rowsOfRun(run: string, data: readonly string[], signal?: AbortSignal) {
  const { table } = await openFeatureRun(run, undefined, []);
  const { rows } = await readVotes(data, table, { ties: true, signal });
  return { table, rows };
}

export interface ScoreFeaturesOptions {
  /** Also `lower`: rewards less this many standard deviations of the voter's posterior. */
  lower?: number;
  /** Also `everyone`: the reward of all voters together, Agg_α. */
  alpha?: number;
  /** Files of who counts how much in it, and by which groups (`readVoices`); absent: everyone alike. */
  voters?: readonly string[];
  /** Groups count alike, however heavy their voters are together. */
  equalGroups?: boolean;
  signal?: AbortSignal;
}

/**
 * `score --run` of rewards on features: of every item that a row names, in the row's order, for the row's annotator; and
 * which one each reward puts first.
 */
export async function scoreFeatures(
  run: string,
  data: readonly string[],
  { lower, alpha, voters, equalGroups, signal }: ScoreFeaturesOptions = {},
): Promise<{ policies: string[]; rows: { rewards: Record<string, number[]>; best: Record<string, number> }[] }> {
  // Voters of the rows alone are read, unless all are asked for.
  const { table, rows } = await rowsOfRun(run, data, signal);
  const names = alpha === undefined ? rows.map((row) => row.annotator ?? '') : undefined;
  const { population } = await openFeatureRun(run, undefined, names);
  const scorers: Record<string, Scorer> = { features: population.scorer(table) };
  if (lower !== undefined) scorers.lower = lowerConfidence(population, table, lower);
  if (alpha !== undefined) {
    const voices = voters && (await readVoices(voters, population.index));
    if (equalGroups && !voices?.groups)
      throw new PluralignError(
        'BAD_DATA',
        `${(voters ?? []).join(', ')}: no row has a "group", expected one to count by`,
      );
    const everyone = aggregateScorer(population, table, { alpha, ...voices, equalGroups });
    scorers.everyone = (_, item) => everyone(item);
  }
  return {
    policies: Object.keys(scorers),
    rows: rows.map((row) => {
      const names = row.kind === 'pair' ? [row.chosen, row.rejected] : row.kind === 'ranking' ? row.responses : [];
      const items = names.map((id) => table.index.get(id as string) as number);
      const u = population.index.get(row.annotator ?? '') ?? -1;
      const of = <T>(what: (scorer: Scorer) => T) =>
        Object.fromEntries(Object.entries(scorers).map(([name, scorer]) => [name, what(scorer)]));
      return {
        rewards: of((scorer) => items.map((item) => scorer(u, item))),
        best: of((scorer) => bestOf(scorer, u, items)),
      };
    }),
  };
}
