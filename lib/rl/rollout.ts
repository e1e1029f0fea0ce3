import type { Bank } from '../adapters/bank.js';
import { type Forest, splitByTokens } from '../data/pack.js';
import type { Group } from '../data/types.js';
import type { Rollout } from '../methods/policy.js';
import type { Model } from '../model/model.js';
import type { Rewards, Scored } from '../rewards/compose.js';
import type { Sample } from '../rewards/types.js';
import { type AdapterChoice, adaptersOf, packUnder } from '../training/scorer.js';
import type { Prompt } from './prompts.js';
import { type SampleFunction, samplesOf } from './sampling.js';

/** What scores a rollout besides the rewards. */
export interface Scorers {
  model: Model;
  /** The policy's parameters. */
  bank: Bank;
  /** The policy that KL is from: a bank's adapter, or the base (null, −1), of the policy's model or of another. */
  reference: { model: Model; bank: Bank | null; adapter: AdapterChoice };
  /** A bank whose first adapter has the critic's head. */
  critic: Bank | null;
  temperature: number;
  maxTokens: number;
  /** Keep what a backward pass over the whole rollout needs, where it fits one pack. */
  keep?: boolean;
  checkpoint?: boolean;
  abort?: Int32Array;
}

/** Values by token of groups under an adapter, or each under its own, in packs of at most `maxTokens`, [T]. */
export async function tokenScores(
  groups: readonly Group[],
  { model, bank, adapter }: Scorers['reference'],
  read: 'logps' | 'reward',
  { temperature, maxTokens, abort }: Pick<Scorers, 'temperature' | 'maxTokens' | 'abort'>,
): Promise<Float32Array> {
  const parts: Float32Array[] = [];
  for (const run of splitByTokens(groups, 1, maxTokens)) {
    // Packed as for log-probabilities also where values are read: one before every token.
    const p = packUnder(run, adapter, { grad: false, read: 'logps' });
    parts.push((await model.score(p, bank, read, { temperature, abort })).values);
  }
  const out = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

export interface Rolled {
  rollout: Rollout;
  /** The policy's forward pass, kept for one backward; null where it was not asked for or is too large. */
  kept: Forest | null;
  /** The policy's adapter of each group of the rollout. */
  adapters: number[];
  samples: Sample[];
  scored: Scored;
}

/** Samples `groupSize` answers to each prompt and scores them: rewards, and log-probabilities under policy and reference. */
export async function makeRollout(
  prompts: readonly Prompt[],
  groupSize: number,
  sample: SampleFunction,
  seed: number,
  rewards: Rewards,
  scorers: Scorers,
  missingEosPenalty: number,
  /** Whose policy answers each prompt; that of `sample`. */
  adapter: AdapterChoice = 0,
): Promise<Rolled> {
  const asked = prompts.flatMap((prompt) => Array.from({ length: groupSize }, () => prompt));
  const answers = await sample(asked, seed);
  const samples = samplesOf(asked, answers, scorers.model);
  const scored = await rewards.score(samples);
  const groups = prompts.map((prompt, g): Group => {
    const { text: _, ...group } = prompt;
    return { ...group, index: g, completions: answers.slice(g * groupSize, (g + 1) * groupSize) };
  });
  const adapters = adaptersOf(prompts, adapter);
  const own = ({ index }: Group) => adapters[index];
  const offsets = new Int32Array(answers.length + 1);
  answers.forEach((ids, c) => {
    offsets[c + 1] = offsets[c] + ids.length;
  });
  const { model, bank, critic } = scorers;
  const { temperature, checkpoint, abort } = scorers;
  const kept =
    scorers.keep && splitByTokens(groups, 1, scorers.maxTokens).length === 1
      ? packUnder(groups, own, { grad: true, read: 'logps' })
      : null;
  const old = kept
    ? (await model.score(kept, bank, 'logps', { keep: true, checkpoint, temperature, abort })).values
    : await tokenScores(groups, { model, bank, adapter: own }, 'logps', scorers);
  const reference = await tokenScores(groups, scorers.reference, 'logps', scorers);
  const values = critic && (await tokenScores(groups, { model, bank: critic, adapter: 0 }, 'reward', scorers));
  // One more reward, so that methods which look at each by itself see it too.
  const penalty = Float64Array.from(samples, ({ ended }) => (ended ? 0 : -missingEosPenalty));
  const rollout: Rollout = {
    groups,
    groupOffsets: Int32Array.from({ length: groups.length + 1 }, (_, g) => g * groupSize),
    offsets,
    old,
    reference,
    scores: scored.total.map((score, c) => score + penalty[c]),
    parts: missingEosPenalty > 0 ? [...scored.parts, penalty] : scored.parts,
    weights: [...rewards.terms.map((term) => term.weight), ...(missingEosPenalty > 0 ? [1] : [])],
    ended: Uint8Array.from(samples, ({ ended }) => (ended ? 1 : 0)),
    values,
  };
  return { rollout, kept, adapters, samples, scored };
}

/** What a step logs of its rollout. `kl` is of whole sequences, in nats; `entropy` of a token, by its samples. */
export function rolloutMetrics({ rollout, samples, scored }: Rolled, rewards: Rewards): Record<string, number> {
  const mean = (values: ArrayLike<number>) => {
    let sum = 0;
    for (let i = 0; i < values.length; i++) sum += values[i];
    return sum / Math.max(1, values.length);
  };
  const { old, reference, scores, ended } = rollout;
  const count = scores.length;
  const score = mean(scores);
  const kl = old.reduce((sum, logp, t) => sum + logp - reference[t], 0);
  const out: Record<string, number> = {
    reward: score,
    reward_std: Math.sqrt(mean(scores.map((s) => (s - score) ** 2))),
  };
  rewards.names.forEach((name, k) => {
    out[`rewards/${name}`] = mean(scored.raw[k]);
  });
  return {
    ...out,
    kl: kl / count,
    kl_per_token: kl / Math.max(1, old.length),
    entropy: -mean(old),
    completion_length: mean(samples.map((s) => s.ids.length)),
    ended: mean(ended),
  };
}
