import { existsSync } from 'node:fs';
import { loadConfig, runConfigPath } from '../../config/index.js';
import type { ResolvedConfig } from '../../config/schema.js';
import type { Evaluation } from '../../evaluation/preference.js';
import { type ItemTable, readItems } from '../../features/items.js';
import type { Votes } from '../../features/votes.js';
import { PluralignError } from '../../native/errors.js';
import { requireRun } from '../../training/run-folder.js';
import { type Responsibility, readResponsibilities, readTypes, responsibilitiesPath, typesPath } from '../files.js';
import { plainTable, readEmVotes } from './data.js';
import { assignTypes, itemRewards } from './posterior.js';
import { evaluateMixture } from './predict.js';
import { mixtureProblem } from './problem.js';

/** A finished run over types, opened. */
interface EmRun {
  config: ResolvedConfig;
  table: ItemTable;
  /** K arrays [n] */
  rewards: Float64Array[];
  weights: Float64Array;
}

/** The configuration of a run where it finds types over features, else null (also where it is no run). */
export function emConfig(run: string): ResolvedConfig | null {
  const path = runConfigPath(run);
  if (!existsSync(path)) return null;
  const config = loadConfig(path);
  return config.method === 'em-reward' ? config : null;
}

async function openRun(run: string): Promise<EmRun> {
  await requireRun(run);
  const config = emConfig(run);
  if (!config)
    throw new PluralignError('BAD_CONFIG', `${run}: found no run of em-reward; expected one, which knows its types`);
  const { rewards, weights, items } = readTypes(typesPath(run));
  const table = items ? plainTable(typesPath(run), items) : await readItems(config.data.items as string);
  const d = items ? table.n : table.d;
  if (rewards[0].length !== d)
    throw new PluralignError(
      'BAD_SHAPE',
      `${table.file}: found ${d} features, expected the ${rewards[0].length} that ${run} was trained on`,
    );
  const problem = mixtureProblem(emptyVotes, items ? table.n : table);
  return { config, table, rewards: itemRewards(problem, rewards), weights };
}

const emptyVotes: Votes = {
  annotators: [],
  annotator: new Int32Array(0),
  offsets: new Int32Array(1),
  items: new Int32Array(0),
  stages: new Int32Array(0),
  weights: new Float64Array(0),
  margins: new Float64Array(0),
  rows: new Int32Array(0),
  m: 0,
};

/** `eval --run`: rows under each annotator's own mixture of types; those the run does not know get the types' weights. */
export async function evaluateRun(run: string, data: readonly string[], signal?: AbortSignal): Promise<Evaluation> {
  const { table, rewards, weights } = await openRun(run);
  const known = await readResponsibilities(responsibilitiesPath(run));
  const votes = await readEmVotes(data, table, { signal });
  return evaluateMixture(votes, { rewards, weights, known });
}

/**
 * `pluralign assign`: what votes say of their annotators' types, the types' weights being the prior. Throws what reading the
 * run and the votes throws.
 */
export async function assignVotes(
  run: string,
  paths: readonly string[],
  signal?: AbortSignal,
): Promise<Responsibility[]> {
  const { config, table, rewards, weights } = await openRun(run);
  const { votes } = await readEmVotes(paths, table, { signal });
  const em = config.em!;
  return assignTypes(votes, rewards, weights, em.hard ? 0 : em.temperature);
}
