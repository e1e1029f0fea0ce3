import { existsSync } from 'node:fs';
import { copyFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { savePeft } from '../../adapters/peft.js';
import type { ResolvedConfig } from '../../config/schema.js';
import { objectiveOf } from '../../methods/index.js';
import { isAborted } from '../../native/errors.js';
import { noteTo } from '../../training/progress.js';
import { openRunFolder } from '../../training/run-folder.js';
import { makeReference, openModel, prepareData } from '../../training/setup.js';
import { stopOf } from '../../training/signals.js';
import { copyEvents } from '../../training/tensorboard.js';
import type { TrainOptions } from '../../training/train.js';
import { type Responsibility, responsibilitiesPath, typesPath, writeResponsibilities, writeTypes } from '../files.js';
import {
  agreementWithGroups,
  evaluateVotes,
  mixtureOutcome,
  type TypedEvaluation,
  type TypedVote,
} from '../outcome.js';
import type { EmSummary } from '../summary.js';
import { annotatorsOf } from './annotators.js';
import { type Fitted, fitTypes, likelihoodOf } from './choose.js';
import { collapsedPolicies, describePolicies, sampleRows } from './describe.js';
import { type Fit, meanCertainty } from './fit.js';
import { Fits, typeName, type Workshop } from './setup.js';

/**
 * EM over policies (`em-dpo`) or reward models (`em-reward`) of a language model. Writes the run folder: config.yaml,
 * metrics.jsonl and event files of the start that was kept, checkpoints, an adapter for each type, types.safetensors (weights), responsibilities.csv, summary.json and
 * report.html.
 *
 * @throws PluralignError `BAD_CONFIG`, `BAD_DATA`, `NOT_FOUND`, `NON_FINITE`, `BUSY`
 */
export async function trainTypes(config: ResolvedConfig, options: TrainOptions = {}): Promise<EmSummary> {
  const { quiet = false } = options;
  const note = noteTo(options);
  const stop = stopOf(options.stop);
  const folder = await openRunFolder(config, { resume: options.resume });
  try {
    const started = performance.now();
    using model = await openModel(config);
    const data = await prepareData(config, model, { signal: stop.signal, quiet });
    for (const text of data.notes) note(text);
    objectiveOf(config).check(data.eval);
    const annotators = annotatorsOf(data.train);
    const single = annotators.votes.reduce((n, votes) => n + (votes === 1 ? 1 : 0), 0);
    if (single > 0)
      note(`${single} of ${annotators.names.length} annotators have one vote: it says little of their types`);
    using reference = config.method === 'em-dpo' ? await makeReference(config, model) : null;
    const shop: Workshop = {
      config,
      model,
      reference,
      rows: data.train,
      annotators,
      dir: folder.dir,
      resume: options.resume ?? false,
      quiet,
      abort: stop.flag,
      note,
    };
    const fits = new Fits(shop);
    const summary: EmSummary = {
      method: config.method,
      steps: 0,
      finished: false,
      seconds: 0,
      train: {},
      data: { ...data.reports, annotators: annotators.names.length, votes: data.train.length },
      paths: { run: folder.dir },
      em: emptySummary(),
    };
    try {
      const fitted = await fitTypes(fits);
      const one = await fitOne(fits, fitted);
      fits.stop({ finished: true });
      await finish(fits, fitted, one, data.eval, summary);
    } catch (error) {
      if (!isAborted(error)) throw error;
      note('stopped; the run is saved, go on with --resume');
    } finally {
      fits.stop({ finished: false });
    }
    summary.seconds += (performance.now() - started) / 1000;
    await folder.writeSummary(summary);
    if (!existsSync(folder.paths.metrics)) await writeFile(folder.paths.metrics, '');
    const { writeReport } = await import('../../report/index.js');
    await writeReport(folder.dir);
    return summary;
  } catch (error) {
    if (!existsSync(folder.paths.metrics) && !existsSync(folder.paths.checkpoints)) await folder.discard();
    throw error;
  } finally {
    await folder.release();
  }
}

function emptySummary(): EmSummary['em'] {
  return { types: 0, weights: [], log_likelihood: 0, collapsed: [], mean_certainty: 0, starts: [], description: [] };
}

/** One type for all, to compare with. */
async function fitOne(fits: Fits, { fit }: Fitted): Promise<Fit | null> {
  const { em, shop } = fits;
  if (!em.compare_one || fit.types === 1) return null;
  const { rows, annotators } = shop;
  const one = await fits.open({ types: 1, start: 0, name: 'one-type', rows, annotators });
  await one.fit();
  return one;
}

/** Types by falling weight: [new] → old. */
function byWeight(weights: ArrayLike<number>): number[] {
  return Array.from(weights, (_, k) => k).sort((a, b) => weights[b] - weights[a]);
}

async function finish(
  fits: Fits,
  fitted: Fitted,
  one: Fit | null,
  evalRows: Workshop['rows'],
  summary: EmSummary,
): Promise<void> {
  const { shop } = fits;
  const { config, rows, annotators, note, dir } = shop;
  const { fit } = fitted;
  const { policies } = fit.options;
  const order = byWeight(fit.state.weights);
  const inOrder = <T>(values: ArrayLike<T>): T[] => order.map((k) => values[k]);
  const weights = inOrder(fit.state.weights);
  const gamma = order.map((k) => fit.state.gamma[k]);
  const lines = annotators.names.map(
    (annotator, u): Responsibility => ({
      annotator,
      probabilities: gamma.map((own) => own[u]),
      votes: annotators.votes[u],
    }),
  );
  const known = new Map(lines.map((line) => [line.annotator, line.probabilities]));
  const ordered = (votes: readonly TypedVote[]) => votes.map((v) => ({ ...v, rewards: inOrder(v.rewards) }));

  // How types differ, on some of the rows, and how they do on rows that were held out.
  const sample = ordered(await policies.votes(sampleRows(rows)));
  const held = evalRows.length > 0 ? ordered(await policies.votes(evalRows)) : [];
  const evaluation = held.length > 0 ? evaluateVotes(held, weights, known) : null;
  const alone = one && evalRows.length > 0 ? await one.options.policies.votes(evalRows) : [];
  const collapsed = collapsedPolicies(sample, weights.length);
  for (const { types, difference } of collapsed)
    note(
      `types ${types[0] + 1} and ${types[1] + 1} have become one: their choices differ by ` +
        `${(100 * difference).toFixed(2)} % on average; ask for fewer types`,
    );
  const enough = oneIsEnough(evaluation, held, alone, weights, known, collapsed.length, note);

  for (const [k, from] of order.entries())
    await savePeft(policies.options.bank, typeName(from), join(dir, 'adapter', typeName(k)), {
      baseModel: config.model?.replace(/^hf:/, ''),
    });
  await writeTypes(typesPath(dir), { weights, rewards: null });
  await writeResponsibilities(responsibilitiesPath(dir), lines);
  if (fit.options.dir !== dir) {
    await copyFile(join(fit.options.dir, 'metrics.jsonl'), join(dir, 'metrics.jsonl'));
    await copyEvents(fit.options.dir, dir);
  }

  const { run } = fit;
  summary.steps = fit.state.step;
  summary.finished = true;
  summary.train = {
    ...run.last,
    log_likelihood: likelihoodOf(fit),
    samples_per_second: run.groups / Math.max(run.stepSeconds, 1e-9),
    tokens_per_second: run.tokens / Math.max(run.stepSeconds, 1e-9),
  };
  summary.paths.adapter = join(dir, 'adapter');
  if (evaluation) summary.eval = evaluation;
  const agreement = agreementWithGroups(rows, known);
  summary.em = {
    types: weights.length,
    weights,
    log_likelihood: likelihoodOf(fit),
    collapsed: collapsed.map(({ types: [k, l] }) => [k + 1, l + 1]),
    mean_certainty: meanCertainty(gamma),
    starts: fitted.starts.map(({ fit: { state }, kept }) => ({
      log_likelihood: state.history[state.history.length - 1],
      rounds: state.round,
      reseeded: state.reseeded,
      weights: byWeight(state.weights).map((k) => state.weights[k]),
      kept,
    })),
    description: describePolicies(sample, rows, annotators, { gamma, weights }, shop.model.tokenizer),
  };
  if (one) summary.em.one_type_log_likelihood = likelihoodOf(one);
  if (enough !== undefined) summary.em.one_type_is_enough = enough;
  Object.assign(summary.em, agreement);
  if (fitted.criteria) {
    summary.em.criteria = fitted.criteria;
    const lineOf = (types: number) => fitted.criteria!.find((line) => line.types === types)?.bic;
    summary.em.bic = lineOf(weights.length);
    summary.em.one_type_bic = lineOf(1);
  }
  for (const { fit: other } of fitted.starts) other.dispose();
  one?.dispose();
}

/**
 * One type is enough where types do not predict held-out votes better by more than a standard error, or where all types have
 * become one. Undefined where nothing was held out.
 */
function oneIsEnough(
  evaluation: TypedEvaluation | null,
  held: readonly TypedVote[],
  alone: readonly TypedVote[],
  weights: readonly number[],
  known: ReadonlyMap<string, ArrayLike<number>>,
  collapsed: number,
  note: (text: string) => void,
): boolean | undefined {
  const types = weights.length;
  if (types === 1) return undefined;
  if (collapsed === (types * (types - 1)) / 2) {
    note('one type is enough: all types have become one');
    return true;
  }
  if (!evaluation || alone.length === 0) return undefined;
  const gains = held.map((vote, i) => {
    const gamma = known.get(vote.group.annotator ?? '') ?? weights;
    return mixtureOutcome(vote, gamma).logLikelihood - mixtureOutcome(alone[i], [1]).logLikelihood;
  });
  const mean = gains.reduce((a, b) => a + b, 0) / gains.length;
  const variance = gains.reduce((sum, gain) => sum + (gain - mean) ** 2, 0) / Math.max(1, gains.length - 1);
  const error = Math.sqrt(variance / gains.length);
  const enough = mean <= error;
  if (enough)
    note(
      `one type is enough: on held-out votes ${types} types gain ${mean.toFixed(4)} nats a vote over one, ` +
        `with a standard error of ${error.toFixed(4)}`,
    );
  return enough;
}
