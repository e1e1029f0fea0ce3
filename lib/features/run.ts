import { existsSync } from 'node:fs';
import { loadConfig, type ResolvedConfig, runConfigPath } from '../config/index.js';
import type { Evaluation } from '../evaluation/preference.js';
import { PluralignError } from '../native/errors.js';
import { requireRun } from '../training/run-folder.js';
import { readVotes } from './data.js';
import { evaluateVotes } from './evaluate.js';
import { type ItemTable, readItems } from './items.js';
import { Population } from './population.js';
import { populationPath } from './train.js';

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

/** Everyone a run knows, and its items (or those of another table). Throws `BAD_CONFIG` for a run that is none of these. */
export async function openFeatureRun(run: string, items?: string): Promise<FeatureRun> {
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
  const population = Population.load(path);
  return { config, population, table: await readItems(items ?? (config.data.items as string)) };
}

/** `eval --run` of rewards on features. Annotators whom the run does not know get the generic reward. */
export async function evalFeatures(
  run: string,
  data: readonly string[],
  options: { signal?: AbortSignal; note?: (text: string) => void } = {},
): Promise<Evaluation> {
  const { population, table } = await openFeatureRun(run);
  const { annotators } = population;
  const votes = await readVotes(data, table, { annotators, signal: options.signal });
  for (const text of votes.notes) options.note?.(text);
  const unknown = votes.votes.annotators.length - annotators.length;
  if (unknown > 0) options.note?.(`${unknown} annotators are not in the run and get the generic reward`);
  return evaluateVotes(votes, annotators.length, population.scorer(table));
}

/** `score --run` of rewards on features: of every item that a row names, in the row's order, for the row's annotator. */
export async function scoreFeatures(
  run: string,
  data: readonly string[],
  signal?: AbortSignal,
): Promise<{ policies: string[]; rows: { rewards: Record<string, number[]> }[] }> {
  const { population, table } = await openFeatureRun(run);
  const { rows } = await readVotes(data, table, { annotators: population.annotators, signal });
  const scorer = population.scorer(table);
  return {
    policies: ['features'],
    rows: rows.map((row) => {
      const items = row.kind === 'pair' ? [row.chosen, row.rejected] : row.kind === 'ranking' ? row.responses : [];
      const u = population.index.get(row.annotator ?? '') ?? -1;
      return { rewards: { features: items.map((id) => scorer(u, table.index.get(id as string) as number)) } };
    }),
  };
}
