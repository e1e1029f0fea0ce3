import type { ResolvedConfig, ResolvedEm } from '../../config/schema.js';
import { PluralignError } from '../../native/errors.js';
import { MetricsWriter } from '../../training/metrics.js';
import { noteTo } from '../../training/progress.js';
import { openRunFolder } from '../../training/run-folder.js';
import { EventWriter } from '../../training/tensorboard.js';
import type { TrainOptions } from '../../training/train.js';
import { bic, choiceNames } from '../criteria.js';
import { responsibilitiesPath, typesPath, writeResponsibilities, writeTypes } from '../files.js';
import { startFrom } from '../from-file.js';
import { likeliest } from '../outcome.js';
import type { EmSummary } from '../summary.js';
import { type Choice, chooseTypes, collapsedTypes, parameterCount } from './choose.js';
import { emData } from './data.js';
import { describeTypes } from './describe.js';
import { fitMixture, type MixtureOptions } from './mixture.js';
import { itemRewards, responsibilitiesOf } from './posterior.js';
import { evaluateMixture, type Prediction } from './predict.js';
import { type MixtureProblem, mixtureProblem } from './problem.js';

/**
 * EM over reward models on features (`method: em-reward`, `model: features`). Writes the run folder: config.yaml,
 * metrics.jsonl (one line a round of the start that was kept), types.safetensors, responsibilities.csv, summary.json and
 * report.html.
 *
 * @throws PluralignError `BAD_CONFIG`, `BAD_DATA`, `NOT_FOUND`, `NON_FINITE`, `BUSY`, `ABORTED`
 */
export async function trainMixture(config: ResolvedConfig, options: TrainOptions = {}): Promise<EmSummary> {
  const note = noteTo(options);
  const signal = options.stop instanceof AbortSignal ? options.stop : options.stop?.signal;
  const folder = await openRunFolder(config, { resume: options.resume });
  try {
    const started = performance.now();
    const data = await emData(config, signal);
    for (const text of data.notes) note(text);
    const { votes } = data.train;
    const problem = mixtureProblem(votes, data.plain ? data.table.n : data.table);
    const em = config.em as ResolvedEm;
    const { fit, types, criteria } = await fitted(problem, config, note, signal);
    const items = itemRewards(problem, fit.rewards);
    const lines = responsibilitiesOf(votes, fit.posterior.gamma);
    await writeTypes(typesPath(folder.dir), {
      rewards: fit.rewards,
      weights: fit.weights,
      items: data.plain ? data.table.ids : null,
    });
    await writeResponsibilities(responsibilitiesPath(folder.dir), lines);

    const one = bic(fit.pooled.logLikelihood, problem.rank, votes.m);
    const mine = bic(fit.logLikelihood, parameterCount(problem, types, em.weights), votes.m);
    const collapsed = collapsedTypes(problem, fit.rewards);
    for (const { types: pair, difference } of collapsed)
      note(
        `types ${pair[0] + 1} and ${pair[1] + 1} have become one: their choices differ by ` +
          `${(100 * difference).toFixed(2)} % on average; ask for fewer types`,
      );
    const enough = types > 1 && one <= mine;
    if (enough)
      note(`one type is enough: ${types} types have a BIC of ${mine.toFixed(1)}, one type has ${one.toFixed(1)}`);
    const counts = lines.filter((line) => line.votes === 1).length;
    if (counts > 0) note(`${counts} of ${lines.length} annotators have one vote`);
    const steepest = items.reduce((most, own) => Math.max(most, ...minMax(own)), 0);
    if (steepest > 30)
      note(`rewards reach ${steepest.toFixed(0)}: the votes can be told apart without error; give features.l2 above 0`);

    const prediction: Prediction = {
      rewards: items,
      weights: fit.weights,
      known: new Map(lines.map((line) => [line.annotator, line.probabilities])),
    };
    const { overall } = evaluateMixture(data.train, prediction);
    const evaluation = data.eval && data.eval.votes.m > 0 ? evaluateMixture(data.eval, prediction) : null;
    const metrics = await MetricsWriter.open(folder.paths.metrics);
    // A run is written anew as a whole, as metrics.jsonl is.
    const events = await EventWriter.open(folder.dir, { resumeAt: folder.resumed ? -1 : undefined });
    for (const [round, total] of fit.history.entries()) {
      const line = {
        round,
        loss: -total / votes.m,
        grad_norm: 0,
        learning_rate: 0,
        log_likelihood: total / votes.m,
        log_likelihood_per_annotator: total / votes.annotators.length,
      };
      await metrics.write({ step: round, ...line });
      await events.scalars(round, line);
    }
    await metrics.close();
    await events.close();
    const summary: EmSummary = {
      method: config.method,
      steps: fit.rounds,
      finished: true,
      seconds: (performance.now() - started) / 1000,
      train: {
        loss: -fit.logLikelihood / votes.m,
        log_likelihood: fit.logLikelihood / votes.m,
        log_likelihood_per_annotator: fit.logLikelihood / votes.annotators.length,
        accuracy: overall.accuracy,
      },
      data: { ...data.reports, annotators: votes.annotators.length, votes: votes.m, items: problem.n },
      paths: { run: folder.dir, model: typesPath(folder.dir) },
      em: {
        types,
        weights: [...fit.weights],
        log_likelihood: fit.logLikelihood / votes.m,
        one_type_log_likelihood: fit.pooled.logLikelihood / votes.m,
        bic: mine,
        one_type_bic: one,
        one_type_is_enough: enough,
        collapsed: collapsed.map(({ types: [k, l] }) => [k + 1, l + 1]),
        mean_certainty: lines.reduce((sum, line) => sum + Math.max(...line.probabilities), 0) / lines.length,
        starts: fit.starts.map((start) => ({
          log_likelihood: start.logLikelihood / votes.m,
          rounds: start.rounds,
          converged: start.converged,
          reseeded: start.reseeded,
          weights: [...start.weights],
          kept: start.history === fit.history,
        })),
        description: describeTypes(
          problem,
          data.train,
          data.table.ids,
          { rewards: fit.rewards, weights: fit.weights, likeliest: lines.map((line) => likeliest(line.probabilities)) },
          items,
        ),
      },
    };
    if (criteria) summary.em.criteria = criteria;
    if (evaluation) summary.eval = evaluation;
    await folder.writeSummary(summary);
    const { writeReport } = await import('../../report/index.js');
    await writeReport(folder.dir);
    return summary;
  } finally {
    await folder.release();
  }
}

function minMax(values: Float64Array): [number, number] {
  let [low, high] = [0, 0];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [-low, high];
}

async function fitted(
  problem: MixtureProblem,
  config: ResolvedConfig,
  note: (text: string) => void,
  signal: AbortSignal | undefined,
): Promise<Omit<Choice, 'criteria'> & { criteria?: Choice['criteria'] }> {
  const em = config.em as ResolvedEm;
  const options: Omit<MixtureOptions, 'types'> = {
    rounds: em.rounds,
    restarts: em.restarts,
    weights: em.weights,
    temperature: em.hard ? 0 : em.temperature,
    l2: config.features?.l2 ?? 0,
    seed: config.train.seed,
    signal,
    onNote: note,
  };
  const named = em.init === 'random' || em.init === 'k-means' || em.init === 'spectral';
  if (Array.isArray(em.types) && em.types.length > 1) {
    if (!named)
      throw new PluralignError(
        'BAD_CONFIG',
        'em.init: is a file, which has one number of types, but em.types lists several',
      );
    const init = em.init as 'random' | 'k-means' | 'spectral';
    const choice = await chooseTypes(problem, em.types, { ...options, init, by: em.choose_by });
    note(`chose ${choice.types} types by ${choiceNames[em.choose_by]}`);
    return choice;
  }
  const types = Array.isArray(em.types) ? em.types[0] : em.types;
  const init = named
    ? (em.init as 'random' | 'k-means' | 'spectral')
    : await startFrom(em.init, types, problem.votes.annotators);
  return { fit: await fitMixture(problem, { ...options, types, init }), types };
}
