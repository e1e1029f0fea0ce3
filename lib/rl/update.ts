import type { Bank } from '../adapters/bank.js';
import { Random } from '../base/random.js';
import { type Forest, splitByTokens } from '../data/pack.js';
import type { Group } from '../data/types.js';
import type { Estimate, PolicyMethod, Rollout, UpdateOutcome, UpdateTotals } from '../methods/policy.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { type AdapterChoice, packUnder } from '../training/scorer.js';

export interface UpdateOptions {
  model: Model;
  bank: Bank;
  /** The bank's adapter of each group of the rollout. */
  adapters: readonly number[];
  critic: Bank | null;
  temperature: number;
  maxTokens: number;
  checkpoint: boolean;
  /** The longest completion there can be. */
  longest: number;
  /** One optimizer step on a bank, for the groups at `at`; its gradient's norm. */
  step: (bank: Bank, at: readonly number[]) => Promise<number>;
  /** A forward pass of the first update that is done already. */
  kept: Forest | null;
  seed: number;
  abort?: Int32Array;
}

/** Values by token of some groups of a rollout, as one array. */
function gather<T extends Float32Array | Float64Array>(rollout: Rollout, at: readonly number[], values: T): T {
  const { groupOffsets: g, offsets } = rollout;
  const parts = at.map((i) => values.subarray(offsets[g[i]], offsets[g[i + 1]]));
  const out = values.slice(
    0,
    parts.reduce((n, part) => n + part.length, 0),
  ) as T;
  let to = 0;
  for (const part of parts) {
    out.set(part, to);
    to += part.length;
  }
  return out;
}

/** Prompts of each update of an epoch: a fresh shuffle, cut into `count` runs of almost one size. */
export function minibatches(groups: number, count: number, random: Random): number[][] {
  const order = Array.from({ length: groups }, (_, i) => i);
  if (count > 1) random.shuffle(order);
  const n = Math.min(count, groups);
  return Array.from({ length: n }, (_, k) =>
    order.slice(Math.round((k * groups) / n), Math.round(((k + 1) * groups) / n)),
  );
}

/** The updates that a rollout gives: score → loss → backward → step for each minibatch of each epoch; what they measured. */
export async function updateOn(
  rollout: Rollout,
  estimate: Estimate,
  method: PolicyMethod,
  options: UpdateOptions,
): Promise<Record<string, number>> {
  const { bank, critic } = options;
  const random = new Random(options.seed, 0xba7c);
  const sums = { loss: 0, grad_norm: 0, value_loss: 0, value_grad_norm: 0, clipped: 0, of: 0 };
  let updates = 0;
  // Once parameters have moved the step is finished: a checkpoint between two updates could not be gone on from.
  const now = () => (updates === 0 ? options : { ...options, abort: undefined, kept: null });
  let far = 0;
  let stopped = 0;
  epochs: for (let epoch = 0; epoch < method.epochs; epoch++) {
    for (const at of minibatches(rollout.groups.length, method.minibatches, random)) {
      const totals = totalsOf(rollout, at, method, options.longest);
      bank.zeroGrad(new Set(at.map((i) => options.adapters[i])));
      const own = ({ index }: Group) => options.adapters[index];
      const policy = await pass(rollout, at, { bank, adapter: own }, 'logps', now(), (groups, logps, offsets) => {
        const [old, reference] = [gather(rollout, groups, rollout.old), gather(rollout, groups, rollout.reference)];
        far += old.reduce((sum, logp, t) => sum + logp - logps[t], 0) / totals.tokens;
        return method.loss(
          { offsets, logps, old, reference, advantages: gather(rollout, groups, estimate.advantages) },
          totals,
        );
      });
      // Farther than allowed: what this minibatch would teach is left out, and so is the rest of the rollout.
      if (method.stopKl !== null && far > method.stopKl) {
        stopped = 1;
        break epochs;
      }
      far = 0;
      sums.loss += policy.loss;
      sums.clipped += policy.clipped;
      sums.of += policy.of;
      sums.grad_norm += await options.step(bank, at);
      if (critic && method.critic) {
        critic.zeroGrad();
        const { critic: loss } = method;
        const value = await pass(
          rollout,
          at,
          { bank: critic, adapter: 0 },
          'reward',
          { ...options, abort: undefined, kept: null },
          (groups, values) =>
            loss(
              values,
              gather(rollout, groups, rollout.values!),
              gather(rollout, groups, estimate.returns!),
              totals.tokens,
            ),
        );
        sums.value_loss += value.loss;
        sums.value_grad_norm += await options.step(critic, at);
      }
      updates++;
    }
  }
  const n = Math.max(1, updates);
  const out: Record<string, number> = {
    loss: sums.loss / n,
    grad_norm: sums.grad_norm / n,
    clip_share: sums.clipped / Math.max(1, sums.of),
  };
  if (critic) Object.assign(out, { value_loss: sums.value_loss / n, value_grad_norm: sums.value_grad_norm / n });
  if (method.stopKl !== null) out.stopped_early = stopped;
  return out;
}

function totalsOf(rollout: Rollout, at: readonly number[], method: PolicyMethod, longest: number): UpdateTotals {
  const { groupOffsets: g, offsets } = rollout;
  const tokens = at.reduce((n, i) => n + offsets[g[i + 1]] - offsets[g[i]], 0);
  return {
    completions: at.reduce((n, i) => n + g[i + 1] - g[i], 0),
    tokens: Math.max(1, tokens),
    rolloutTokens: offsets[offsets.length - 1] / Math.min(method.minibatches, rollout.groups.length),
    longest,
  };
}

/** Forward and backward over some groups in packs; the losses add up. */
async function pass(
  rollout: Rollout,
  at: readonly number[],
  { bank, adapter }: { bank: Bank; adapter: AdapterChoice },
  read: 'logps' | 'reward',
  { model, temperature, maxTokens, checkpoint, abort, kept }: UpdateOptions,
  loss: (groups: number[], values: Float32Array, offsets: Int32Array) => UpdateOutcome,
): Promise<Omit<UpdateOutcome, 'gradient'>> {
  const sum = { loss: 0, clipped: 0, of: 0 };
  const indexed = at.map((i): Group & { at: number } => ({ ...rollout.groups[i], at: i }));
  for (const run of splitByTokens(indexed, 1, maxTokens)) {
    const p = kept ?? packUnder(run, adapter, { grad: true, read: 'logps' });
    const values = kept
      ? gather(rollout, [...at], rollout.old)
      : (await model.score(p, bank, read, { keep: true, checkpoint, temperature, abort })).values;
    const outcome = loss(
      run.map((group) => group.at),
      values,
      p.offsets,
    );
    if (!Number.isFinite(outcome.loss) || !outcome.gradient.every(Number.isFinite))
      throw new PluralignError(
        'NON_FINITE',
        `the loss is ${outcome.loss}; prompts ${run
          .slice(0, 5)
          .map(({ origin }) => `${origin.file}:${origin.line}`)
          .join(', ')} are in the batch. No step was taken; lower the learning rate`,
      );
    await model.backward(p, bank, outcome.gradient, abort);
    sum.loss += outcome.loss;
    sum.clipped += outcome.clipped;
    sum.of += outcome.of;
  }
  return sum;
}
