import type { ResolvedConfig } from '../../config/schema.js';
import type { Evaluation } from '../../evaluation/preference.js';
import { type ItemTable, readItems } from '../../features/items.js';
import type { Votes } from '../../features/votes.js';
import { PluralignError } from '../../native/errors.js';
import { type Responsibility, readResponsibilities, readTypes, responsibilitiesPath, typesPath } from '../files.js';
import { plainTable, readEmVotes } from './data.js';
import { assignTypes, itemRewards } from './posterior.js';
import { evaluateMixture } from './predict.js';
import { mixtureProblem } from './problem.js';

/** A finished run over types, opened. */
interface EmRun {
  table: ItemTable;
  /** K arrays [n] */
  rewards: Float64Array[];
  weights: Float64Array;
}

async function openRun(run: string, config: ResolvedConfig): Promise<EmRun> {
  const { rewards, weights, items } = readTypes(typesPath(run));
  const table = items ? plainTable(typesPath(run), items) : await readItems(config.data.items as string);
  const d = items ? table.n : table.d;
  if (rewards[0].length !== d)
    throw new PluralignError(
      'BAD_SHAPE',
      `${table.file}: found ${d} features, expected the ${rewards[0].length} that ${run} was trained on`,
    );
  const problem = mixtureProblem(emptyVotes, items ? table.n : table);
  return { table, rewards: itemRewards(problem, rewards), weights };
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
export async function evaluateFeatures(
  run: string,
  config: ResolvedConfig,
  data: readonly string[],
  signal?: AbortSignal,
): Promise<Evaluation> {
  const { table, rewards, weights } = await openRun(run, config);
  const known = await readResponsibilities(responsibilitiesPath(run));
  const votes = await readEmVotes(data, table, { signal });
  return evaluateMixture(votes, { rewards, weights, known });
}

/** What votes say of their annotators' types, the types' weights being the prior. */
export async function assignFeatures(
  run: string,
  config: ResolvedConfig,
  paths: readonly string[],
  signal?: AbortSignal,
): Promise<Responsibility[]> {
  const { table, rewards, weights } = await openRun(run, config);
  const { votes } = await readEmVotes(paths, table, { signal });
  const em = config.em!;
  return assignTypes(votes, rewards, weights, em.hard ? 0 : em.temperature);
}
