import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Bank } from '../../adapters/bank.js';
import type { ResolvedConfig } from '../../config/schema.js';
import { groupsOf, readRows, tokenNotes } from '../../data/index.js';
import { packTokens } from '../../data/pack.js';
import type { Group } from '../../data/types.js';
import type { Evaluation } from '../../evaluation/preference.js';
import { kindsOf, objectiveOf } from '../../methods/index.js';
import { Model } from '../../model/model.js';
import { PluralignError } from '../../native/errors.js';
import { progress } from '../../training/progress.js';
import { openReference, referenceOf } from '../../training/setup.js';
import { stopOf } from '../../training/signals.js';
import { eStep } from '../estep.js';
import {
  type Responsibility,
  readResponsibilities,
  readTypeWeights,
  responsibilitiesPath,
  typesPath,
} from '../files.js';
import { evaluateVotes, type TypedVote } from '../outcome.js';
import type { EmRunOptions } from '../run.js';
import { annotatorsOf } from './annotators.js';
import { TypePolicies } from './policies.js';
import { rewardScale, typeName } from './setup.js';

/** A finished run's types on some rows. */
interface Typed {
  votes: TypedVote[];
  groups: Group[];
  weights: Float64Array;
  policies: TypePolicies;
}

async function typedVotes(
  config: ResolvedConfig,
  { run, data, stop, note, ...load }: EmRunOptions,
  needs: { annotators: boolean },
): Promise<Typed> {
  if (!existsSync(typesPath(run)))
    throw new PluralignError(
      'NOT_FOUND',
      `${run} has no types yet: the run is not finished; go on with train --resume`,
    );
  const { signal, flag: abort } = stopOf(stop);
  const weights = readTypeWeights(typesPath(run));
  const objective = objectiveOf(config);
  using model = await Model.load(config.model!, load);
  const { rows } = await readRows(data, { kinds: kindsOf(config.method), signal });
  const maxLength = model.config.maxPositions;
  const { groups, report } = await groupsOf(rows, model.tokenizer, { maxLength, overLength: 'drop', signal });
  for (const text of tokenNotes(report, maxLength)) note?.(text);
  objective.check(groups);
  if (needs.annotators) annotatorsOf(groups);
  const sources = Array.from(weights, (_, k) => ({ name: typeName(k), dir: join(run, 'adapter', typeName(k)) }));
  const bank = await Bank.fromPeft(model.shape, sources);
  const maxTokens = packTokens(config.train, { model });
  using reference = objective.reference
    ? await openReference(referenceOf(config), model, maxTokens, false, load)
    : null;
  const policies = new TypePolicies({
    model,
    bank,
    types: weights.length,
    objective,
    reference,
    ...rewardScale(config),
    maxTokens,
    abort,
  });
  const bar = progress(groups.length, 'score');
  try {
    return { votes: await policies.votes(groups, (done) => bar.update(done)), groups, weights, policies };
  } finally {
    bar.stop();
  }
}

/** Rows under each annotator's mixture of the run's policies, and under each policy alone. */
export async function evaluatePolicies(
  config: ResolvedConfig,
  options: EmRunOptions,
): Promise<Evaluation & { policies: Record<string, Evaluation> }> {
  const { votes, weights } = await typedVotes(config, options, { annotators: false });
  const known = await readResponsibilities(responsibilitiesPath(options.run));
  const nobody = new Map<string, number[]>();
  const policies: Record<string, Evaluation> = {};
  weights.forEach((_, k) => {
    policies[typeName(k)] = evaluateVotes(
      votes,
      Array.from(weights, (__, l) => (l === k ? 1 : 0)),
      nobody,
    );
  });
  return { ...evaluateVotes(votes, weights, known), policies };
}

/** What votes say of their annotators' types. */
export async function assignPolicies(config: ResolvedConfig, options: EmRunOptions): Promise<Responsibility[]> {
  const { votes, groups, weights, policies } = await typedVotes(config, options, { annotators: true });
  const annotators = annotatorsOf(groups);
  const likelihoods = Array.from(weights, (_, k) =>
    Float64Array.from(votes, ({ group, rewards }) => policies.logLikelihood(group, rewards[k])),
  );
  const { hard, temperature } = config.em!;
  const { gamma } = eStep(likelihoods, annotators.of, annotators.names.length, weights, hard ? 0 : temperature);
  return annotators.names.map((annotator, u) => ({
    annotator,
    probabilities: gamma.map((own) => own[u]),
    votes: annotators.votes[u],
  }));
}
