import type { Bank } from '../adapters/bank.js';
import { splitByTokens } from '../data/pack.js';
import type { Group } from '../data/types.js';
import { PluralignError } from '../native/errors.js';
import type { LossOutcome, Objective, RowOutcome, Scores } from './objective.js';
import { joinScores, type Reference, type Scorer, scoreGroups } from './scorer.js';

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

/** Throws NON_FINITE naming the rows whose scores (or, failing that, whose step's loss) are not finite. */
function checkFinite(scores: Scores, outcome: LossOutcome): void {
  if (Number.isFinite(outcome.loss) && outcome.gradient.every(Number.isFinite)) return;
  const bad = scores.groups.filter((_, g) => {
    const from = scores.offsets[scores.groupOffsets[g]];
    const to = scores.offsets[scores.groupOffsets[g + 1]];
    return !scores.values.subarray(from, to).every(Number.isFinite);
  });
  const rows = (bad.length > 0 ? bad : scores.groups).slice(0, 5).map((g) => `${g.origin.file}:${g.origin.line}`);
  throw new PluralignError(
    'NON_FINITE',
    `the loss is ${outcome.loss}; rows ${rows.join(', ')}${(bad.length || scores.groups.length) > 5 ? ', …' : ''} ` +
      `${bad.length > 0 ? 'have scores that are not finite' : 'are in the batch'}. No step was taken; lower the learning rate`,
  );
}

function weightedMeans(parts: readonly { metrics: Record<string, number>; weight: number }[]): Record<string, number> {
  const sums = new Map<string, [number, number]>();
  for (const { metrics, weight } of parts)
    for (const [name, value] of Object.entries(metrics)) {
      const [sum, total] = sums.get(name) ?? [0, 0];
      sums.set(name, [sum + value * weight, total + weight]);
    }
  return Object.fromEntries([...sums].map(([name, [sum, total]]) => [name, total > 0 ? sum / total : 0]));
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
  const runs = splitByTokens(groups, 1, options.maxTokens);
  const totals = objective.totals(groups);
  const score = (run: Group[], keep: boolean) =>
    scoreGroups(run, objective, policy, reference, { keep, checkpoint, dropoutSeed, abort });
  const outcome: StepOutcome = { loss: 0, metrics: {}, rows: [], tokens: 0 };

  if (objective.coupled && runs.length > 1) {
    const parts: Scores[] = [];
    for (const run of runs) parts.push((await score(run, false)).scores);
    const whole = joinScores(parts);
    const { loss, gradient, metrics, rows } = checked(whole, objective.loss(whole, totals, true));
    let at = 0;
    for (const run of runs) {
      const { pack: p } = await score(run, true);
      const n = p.readouts.length;
      await policy.model.backward(p, policy.bank, gradient.subarray(at, at + n), abort);
      at += n;
      outcome.tokens += p.native.tokens.length;
    }
    return { ...outcome, loss, metrics, rows };
  }
  const parts: { metrics: Record<string, number>; weight: number }[] = [];
  for (const run of runs) {
    const { scores, pack: p } = await score(run, true);
    const { loss, gradient, metrics, rows } = checked(scores, objective.loss(scores, totals, true));
    await policy.model.backward(p, policy.bank, gradient, abort);
    outcome.loss += loss;
    outcome.rows.push(...rows);
    outcome.tokens += p.native.tokens.length;
    parts.push({ metrics, weight: run.length });
  }
  return { ...outcome, metrics: weightedMeans(parts) };
}

function checked(scores: Scores, outcome: LossOutcome): LossOutcome {
  checkFinite(scores, outcome);
  return outcome;
}

/** Loss and outcomes of rows under the policy as it stands; nothing is kept. */
export async function evaluateGroups(
  groups: readonly Group[],
  objective: Objective,
  policy: Scorer,
  reference: Reference | null,
  options: { maxTokens: number; abort?: Int32Array; onProgress?: (done: number) => void },
): Promise<{ loss: number; metrics: Record<string, number>; rows: RowOutcome[] }> {
  const whole = objective.totals(groups);
  const parts: { metrics: Record<string, number>; weight: number }[] = [];
  const rows: RowOutcome[] = [];
  let loss = 0;
  let done = 0;
  for (const run of splitByTokens(groups, 1, options.maxTokens)) {
    const { scores } = await scoreGroups(run, objective, policy, reference, { abort: options.abort });
    const outcome = objective.loss(scores, whole, false);
    loss += outcome.loss;
    rows.push(...outcome.rows);
    parts.push({ metrics: outcome.metrics, weight: run.length });
    done += run.length;
    options.onProgress?.(done);
  }
  return { loss, metrics: weightedMeans(parts), rows };
}
