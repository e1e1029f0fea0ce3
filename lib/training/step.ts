import type { Bank } from '../adapters/bank.js';
import { leastMerged, tokensOf } from '../data/pack.js';
import type { Group } from '../data/types.js';
import type { LossOutcome, Objective, RowOutcome, Scores } from '../methods/objective.js';
import { PluralignError } from '../native/errors.js';
import { backwardGradient, joinScores, type Reference, runsOf, type Scorer, scoreGroups } from './scorer.js';

export interface StepOptions {
  maxTokens: number;
  checkpoint: boolean;
  dropoutSeed: number;
  abort?: Int32Array;
}

export interface StepOutcome {
  loss: number;
  metrics: Record<string, number>;
  rows: RowOutcome[];
  tokens: number;
}

/** The first of some groups by file and line, for messages. */
export function namedRows(groups: readonly Group[]): string {
  const some = groups.slice(0, 5).map((g) => `${g.origin.file}:${g.origin.line}`);
  return some.join(', ') + (groups.length > some.length ? ', …' : '');
}

/** Throws NON_FINITE naming the rows whose scores (or, failing that, whose step's loss) are not finite. */
function checkFinite(scores: Scores, outcome: LossOutcome): void {
  if (Number.isFinite(outcome.loss) && outcome.gradient.every(Number.isFinite)) return;
  const bad = scores.groups.filter((_, g) => {
    const from = scores.offsets[scores.groupOffsets[g]];
    const to = scores.offsets[scores.groupOffsets[g + 1]];
    return !scores.values.subarray(from, to).every(Number.isFinite);
  });
  throw new PluralignError(
    'NON_FINITE',
    `the loss is ${outcome.loss}; rows ${namedRows(bad.length > 0 ? bad : scores.groups)} ` +
      `${bad.length > 0 ? 'have scores that are not finite' : 'are in the batch'}. No step was taken; lower the learning rate`,
  );
}

/**
 * Score → loss → backward of one step's groups: the bank's gradients grow by the gradient of the mean loss. A step over
 * `maxTokens` runs as several packs; where the loss couples rows, every pack is first scored without activations, and
 * scored again for its backward pass, so that 8 = 4 + 4 holds for every loss.
 */
export async function lossStep(
  groups: readonly Group[],
  objective: Objective,
  policy: Scorer & { bank: Bank },
  reference: Reference | null,
  options: StepOptions,
): Promise<StepOutcome> {
  const { checkpoint, dropoutSeed, abort } = options;
  const merge = !(dropoutSeed && policy.bank.drops) && leastMerged(policy.model);
  const runs = runsOf(groups, policy.adapter, options.maxTokens, merge);
  const totals = objective.totals(groups);
  const score = (run: Group[], keep: boolean, against = reference) =>
    scoreGroups(run, objective, policy, against, { keep, checkpoint, dropoutSeed, abort });
  const parts: Scores[] = [];
  const tokens = groups.reduce((sum, group) => sum + tokensOf(group), 0);

  if (objective.coupled && runs.length > 1) {
    for (const run of runs) parts.push((await score(run, false)).scores);
    const whole = joinScores(parts);
    const outcome = checked(whole, objective.loss(whole, totals, true));
    let at = 0;
    for (const run of runs) {
      const { pack: p } = await score(run, true, null);
      const n = p.readouts.length;
      await policy.model.backward(p, policy.bank, outcome.gradient.subarray(at, at + n), abort);
      at += n;
    }
    return { ...outcome, tokens };
  }
  for (const run of runs) {
    const { scores, pack: p } = await score(run, true);
    const outcome = checked(scores, objective.loss(scores, totals, true));
    await policy.model.backward(p, policy.bank, backwardGradient(p, outcome.gradient), abort);
    if (runs.length === 1) return { ...outcome, tokens };
    parts.push(scores);
  }
  // Again over the whole step: means of the packs' means would depend on how the step was split.
  return { ...objective.loss(joinScores(parts), totals, false), tokens };
}

function checked(scores: Scores, outcome: LossOutcome): LossOutcome {
  checkFinite(scores, outcome);
  return outcome;
}

/**
 * Loss, metrics and outcomes of rows under the policy as it stands, whatever packs they are scored in; nothing is kept and
 * no running statistic advances.
 */
export async function evaluateGroups(
  groups: readonly Group[],
  objective: Objective,
  policy: Scorer,
  reference: Reference | null,
  options: { maxTokens: number; abort?: Int32Array; onProgress?: (done: number) => void },
): Promise<Pick<LossOutcome, 'loss' | 'metrics' | 'rows'>> {
  const parts: Scores[] = [];
  let done = 0;
  for (const run of runsOf(groups, policy.adapter, options.maxTokens, leastMerged(policy.model))) {
    parts.push((await scoreGroups(run, objective, policy, reference, { abort: options.abort })).scores);
    done += run.length;
    options.onProgress?.(done);
  }
  const { loss, metrics, rows } = objective.loss(joinScores(parts), objective.totals(groups), false);
  return { loss, metrics, rows };
}
