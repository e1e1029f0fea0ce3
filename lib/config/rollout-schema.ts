import { z } from 'zod';
import { choice, flag, notNegative, number, positive, section, text, wholeFrom } from './leaves.js';

export const grpoLosses = ['grpo', 'dr_grpo', 'dapo', 'bnpo'] as const;

const rewardTypes = [
  'sentiment',
  'length',
  'readability',
  'word_length',
  'pattern',
  'model',
  'policy',
  'module',
  'function',
] as const;

const rewardTermKeys = {
  type: choice(rewardTypes),
  /** In metrics; null: the type. Of a `function`: what the caller of `train` gave it under. */
  name: text('a name').nullable().default(null),
  /** Below 0: less is better. */
  weight: number().default(1),
  /** To mean 0 and deviation 1 on samples of the reference. */
  normalise: flag().default(true),
  /** Values are cut to ± this; left out: 3 deviations where normalised, else null: never, with a warning. */
  bound: positive().nullable().optional(),
  /** length: what is counted, and the length to be close to (null: longer is better). */
  unit: choice(['tokens', 'words', 'characters']).default('tokens'),
  target: wholeFrom(0).nullable().default(null),
  /** pattern: a regular expression, its flags, and whether matches are counted. */
  pattern: text('a regular expression').nullable().default(null),
  flags: z.string({ error: 'flags of a regular expression' }).default('iu'),
  count: flag().default(false),
  /** model: an adapter with a reward head, or a run. policy: an adapter trained on preferences. */
  adapter: text('a path').nullable().default(null),
  /** model: an annotator of a run with an adapter for each, or of rewards on features; `adapter` is then the run's folder. */
  annotator: text('a name').nullable().default(null),
  /** model: annotator: whoever the prompt's row names judges, the generic reward where it names nobody. */
  per: choice(['all', 'annotator']).default('all'),
  /** model, of rewards on features: less this many standard deviations of what the annotator's votes leave open. */
  lower: notNegative().nullable().default(null),
  /** module: an ES module, and the function it exports. */
  module: text('a path').nullable().default(null),
  export: text('a name').default('default'),
};
type RewardTermKeys = typeof rewardTermKeys;
export interface RewardTermShape extends RewardTermKeys {}

/** One reward of a policy that learns from its own samples. What the built-in ones measure stands in lib/rewards/measures.ts. */
export const rewardTermSchema = section<RewardTermShape>(rewardTermKeys);

const rolloutKeys = {
  max_new_tokens: wholeFrom(1).default(128),
  /** Divides the logits in sampling and in every log-probability. */
  temperature: positive().default(1),
  /** Of sampling alone; 0 and 1: off. */
  top_k: wholeFrom(0).default(0),
  top_p: z.number({ error: 'a number above 0 and at most 1' }).gt(0).max(1).default(1),
  /** Taken off the reward of an answer that did not end. */
  missing_eos_penalty: notNegative().default(0),
  /** Samples of the reference that normalise rewards. */
  reference_samples: wholeFrom(2).default(128),
  /** Sequences that are generated at a time. */
  at_once: wholeFrom(1).default(64),
};
type RolloutKeys = typeof rolloutKeys;
export interface RolloutShape extends RolloutKeys {}

/** How answers are sampled. */
export const rolloutSchema = section<RolloutShape>(rolloutKeys);

const epochs = () => wholeFrom(1).default(1);

const rlooKeys = {
  group_size: wholeFrom(2).default(4),
  beta: notNegative().default(0.05),
  target: positive().nullable().default(null),
  horizon: positive().default(10000),
  epochs: epochs(),
  minibatches: epochs(),
  clip: positive().default(0.2),
  normalise_advantages: flag().default(false),
};
type RlooKeys = typeof rlooKeys;
export interface RlooShape extends RlooKeys {}

export const rlooSchema = section<RlooShape>(rlooKeys);

const grpoKeys = {
  group_size: wholeFrom(2).default(8),
  beta: notNegative().default(0.04),
  epochs: epochs(),
  minibatches: epochs(),
  clip: positive().default(0.2),
  clip_high: positive().nullable().default(null),
  loss: choice(grpoLosses).default('grpo'),
  scale: choice(['group', 'batch', 'none']).default('group'),
  aggregation: choice(['sum_then_normalise', 'normalise_then_sum']).default('sum_then_normalise'),
};
type GrpoKeys = typeof grpoKeys;
export interface GrpoShape extends GrpoKeys {}

export const grpoSchema = section<GrpoShape>(grpoKeys);

const reinforceKeys = {
  group_size: wholeFrom(1).default(1),
  beta: notNegative().default(0.05),
  epochs: epochs(),
  minibatches: epochs(),
  clip: positive().default(0.2),
};
type ReinforceKeys = typeof reinforceKeys;
export interface ReinforceShape extends ReinforceKeys {}

export const reinforceSchema = section<ReinforceShape>(reinforceKeys);

const ppoKeys = {
  epochs: wholeFrom(1).default(4),
  minibatches: epochs(),
  beta: notNegative().default(0.2),
  target: positive().nullable().default(6),
  horizon: positive().default(10000),
  gamma: z.number({ error: 'a number from 0 to 1' }).min(0).max(1).default(1),
  lambda: z.number({ error: 'a number from 0 to 1' }).min(0).max(1).default(0.95),
  clip: positive().default(0.2),
  value_clip: positive().default(0.2),
  vf_coef: positive().default(0.1),
  whiten_rewards: flag().default(false),
  whiten_advantages: flag().default(true),
  stop_kl: positive().nullable().default(null),
};
type PpoKeys = typeof ppoKeys;
export interface PpoShape extends PpoKeys {}

export const ppoSchema = section<PpoShape>(ppoKeys);

/** Where a reward is cut: 3 deviations where it is normalised and nothing else is said. */
export function boundOf({
  bound,
  normalise,
}: Pick<z.output<typeof rewardTermSchema>, 'bound' | 'normalise'>): number | null {
  return bound === undefined ? (normalise ? 3 : null) : bound;
}

export type ResolvedRewardTerm = z.output<typeof rewardTermSchema> & { name: string };
export type ResolvedRollout = z.output<typeof rolloutSchema>;
