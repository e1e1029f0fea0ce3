import { join } from 'node:path';
import { writeFileAtomic } from '../base/files.js';
import type { ResolvedConfig } from '../config/index.js';
import { tieNu } from '../losses/ties.js';
import { PluralignError } from '../native/errors.js';
import { openRunFolder } from '../training/run-folder.js';
import type { TrainOptions, TrainSummary } from '../training/train.js';
import { type FeatureData, featureData } from './data.js';
import { evaluateVotes } from './evaluate.js';
import { featureModel } from './models/index.js';
import { useThreads } from './native.js';
import { voterMap } from './picture.js';
import { Population } from './population.js';
import { isTie, likeliestNu, type Ties, withTies } from './ties.js';
import { voteNotes, voteReport } from './voters.js';
import type { Votes } from './votes.js';

/** The file of a run that holds everyone. */
export function populationPath(run: string): string {
  return join(run, 'features.safetensors');
}

/**
 * Trains rewards on features (`method: reward`, `model: features`) to convergence. Writes the run folder: config.yaml,
 * metrics.jsonl with one line, features.safetensors, summary.json, report.html.
 *
 * @throws PluralignError `BAD_CONFIG`, `BAD_DATA`, `NOT_FOUND`, `NON_FINITE`, `BUSY`, `ABORTED`
 */
export async function trainFeatures(config: ResolvedConfig, options: TrainOptions = {}): Promise<TrainSummary> {
  const note = options.onNote ?? ((text: string) => void (options.quiet || process.stderr.write(`${text}\n`)));
  const folder = await openRunFolder(config, { resume: options.resume });
  try {
    const started = performance.now();
    const signal = options.stop instanceof AbortSignal ? options.stop : options.stop?.signal;
    const data = await featureData(config, signal);
    for (const text of data.notes) note(text);
    const population = await fitPopulation(config, data, note, signal);
    const { own } = population.model;
    const report = voteReport(data.train.votes, own);
    if (own > 0) for (const text of voteNotes(report, population.rank, own)) note(text);
    await population.save(populationPath(folder.dir));
    const scorer = population.scorer(data.table);
    const known = population.annotators.length;
    const { overall } = evaluateVotes(data.train, known, scorer, population.ties);
    const evaluation =
      data.eval && data.eval.votes.m > 0 ? evaluateVotes(data.eval, known, scorer, population.ties) : null;
    const seconds = (performance.now() - started) / 1000;
    const metrics = {
      loss: -overall.log_likelihood,
      grad_norm: 0,
      learning_rate: 0,
      objective: population.report.objective,
      accuracy: overall.accuracy,
      log_likelihood: overall.log_likelihood,
    };
    const { steps } = population.report;
    const held: Record<string, number> = {};
    for (const [name, value] of Object.entries(evaluation?.overall ?? {})) {
      if (name !== 'rows') held[`eval_${name}`] = value as number;
    }
    await writeFileAtomic(folder.paths.metrics, `${JSON.stringify({ step: steps, epoch: 1, ...metrics, ...held })}\n`);
    const summary: TrainSummary = {
      method: config.method,
      steps,
      finished: true,
      seconds,
      train: metrics,
      data: { ...data.reports, annotators: known, votes: data.train.votes.m, voters: report },
      paths: { run: folder.dir, model: populationPath(folder.dir) },
    };
    if (evaluation) summary.eval = evaluation;
    // The same rows all under the reward of whoever is unknown: what is gained by knowing who votes.
    if (data.eval && evaluation && own > 0) summary.eval_generic = evaluateVotes(data.eval, 0, scorer, population.ties);
    // Beside the summary, which `train --json` prints: the map has a place for thousands.
    const voters = { kind: 'items', map: voterMap(population, data.table) };
    await writeFileAtomic(join(folder.dir, 'voters.json'), JSON.stringify(voters));
    await folder.writeSummary(summary);
    const { writeReport } = await import('../report/index.js');
    await writeReport(folder.dir);
    return summary;
  } finally {
    await folder.release();
  }
}

/** Fits the configured model to the training votes. */
async function fitPopulation(
  config: ResolvedConfig,
  { table, train }: FeatureData,
  note: (text: string) => void,
  signal: AbortSignal | undefined,
): Promise<Population & { report: { objective: number; steps: number; converged: boolean } }> {
  const {
    model: name,
    rank: wanted,
    l2,
    residual,
    batch_size,
    epochs,
    learning_rate: learningRate,
    batches: order,
    columns,
  } = config.features as NonNullable<ResolvedConfig['features']>;
  if (name !== 'global' && train.votes.annotators.length === 0) {
    throw new PluralignError(
      'BAD_DATA',
      `no row names an annotator, expected "annotator" in the rows; or give features.model: global`,
    );
  }
  if (table.d % columns !== 0) {
    throw new PluralignError(
      'BAD_DATA',
      `features.columns: found ${columns} for items of ${table.d} features, expected a number that divides them`,
    );
  }
  const most = table.d / columns;
  const rank = name === 'low-rank' || name === 'mixed' ? Math.min(wanted, most) : wanted;
  if (rank < wanted)
    note(
      `features.rank: ${wanted} is more than the ${most} features${columns > 1 ? ' of a column' : ''}; used ${rank}`,
    );
  const model = featureModel(name, table.d, rank, columns);
  if (config.train.threads !== 'auto') useThreads(config.train.threads);
  const batch =
    name === 'low-rank' && batch_size !== null ? { batch: batch_size, epochs, learningRate, order } : undefined;
  const options = { model: name, rank, l2, seed: config.train.seed, batch, residual: residual ?? l2, signal };
  const fit = async (votes: Votes, ties: Ties | null) => {
    const { parameters, report } = await model.fit(table, votes, options);
    return { report, population: new Population(model, rank, l2, votes.annotators, parameters, ties) };
  };
  const { votes } = train;
  const { ties: type, tie_nu: given } = config.loss;
  if (type === 'drop') {
    const { population, report } = await fit(votes, null);
    return Object.assign(population.withPosteriors(table, votes), { report });
  }
  // ν and the rewards in turn: from the share of ties to the likeliest under the rewards, which soon settles.
  const pairs = [...Array(votes.m).keys()].filter((v) => votes.offsets[v + 1] - votes.offsets[v] === 2);
  const tied = Uint8Array.from(pairs, (v) => (isTie(votes, v) ? 1 : 0));
  const weights = Float64Array.from(pairs, (v) => votes.weights[v]);
  let nu = given ?? tieNu(type, tied.reduce((sum, tie) => sum + tie, 0) / Math.max(1, pairs.length));
  for (let round = 0; ; round++) {
    const counted = withTies(votes, { type, nu });
    const { population, report } = await fit(counted, { type, nu });
    if (given !== null || round === 2 || pairs.length === 0) {
      note(`ties: ${type} with nu ${nu.toPrecision(4)}${given === null ? ', the likeliest' : ''}`);
      return Object.assign(population.withPosteriors(table, counted), { report });
    }
    const scorer = population.scorer(table);
    const differences = Float64Array.from(pairs, (v) => {
      const [one, other] = votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]);
      return scorer(votes.annotator[v], one) - scorer(votes.annotator[v], other);
    });
    nu = likeliestNu(type, differences, tied, weights);
  }
}
