import { join } from 'node:path';
import { writeFileAtomic } from '../base/files.js';
import type { ResolvedConfig } from '../config/index.js';
import { noteTo } from '../training/progress.js';
import { openRunFolder } from '../training/run-folder.js';
import { EventWriter } from '../training/tensorboard.js';
import type { TrainOptions, TrainSummary } from '../training/train.js';
import { likeliestSetting } from './choose.js';
import { featureData } from './data.js';
import { evaluateVotes } from './evaluate.js';
import { fitPopulation } from './fit.js';
import { voterMap } from './picture.js';
import { voteNotes, voteReport } from './voters.js';

/** The file of a run that holds everyone. */
export function populationPath(run: string): string {
  return join(run, 'features.safetensors');
}

/**
 * Trains rewards on features (`method: reward`, `model: features`) to convergence. Writes the run folder: config.yaml,
 * metrics.jsonl and an event file with one line, features.safetensors, summary.json, report.html.
 *
 * @throws PluralignError `BAD_CONFIG`, `BAD_DATA`, `NOT_FOUND`, `NON_FINITE`, `BUSY`, `ABORTED`
 */
export async function trainFeatures(config: ResolvedConfig, options: TrainOptions = {}): Promise<TrainSummary> {
  const note = noteTo(options);
  const folder = await openRunFolder(config, { resume: options.resume });
  try {
    const started = performance.now();
    const signal = options.stop instanceof AbortSignal ? options.stop : options.stop?.signal;
    const data = await featureData(config, signal);
    for (const text of data.notes) note(text);
    const choice = await likeliestSetting(config, data, note, signal);
    const population = await fitPopulation(choice?.config ?? config, data, note, signal);
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
    // A run is written anew as a whole, as metrics.jsonl is.
    const events = await EventWriter.open(folder.dir, { resumeAt: folder.resumed ? -1 : undefined });
    await events.scalars(steps, { ...metrics, ...held });
    await events.close();
    const summary: TrainSummary = {
      method: config.method,
      steps,
      finished: true,
      seconds,
      train: metrics,
      data: { ...data.reports, annotators: known, votes: data.train.votes.m, voters: report },
      paths: { run: folder.dir, model: populationPath(folder.dir) },
    };
    if (choice) summary.tried = choice.tried;
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
