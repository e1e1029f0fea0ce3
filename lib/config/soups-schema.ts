import { z } from 'zod';
import { choice, flag, notNegative, number, positive, section, text, wholeFrom } from './leaves.js';
import { type ResolvedRewardTerm, rewardTermSchema } from './rollout-schema.js';

/** What the mixes are compared with, besides the base. */
export const soupBaselines = ['prompting', 'sft', 'one_reward', 'p_morl', 'morl', 'backbones', 'modpo'] as const;

const share = () => {
  const error = 'a number above 0.5 and at most 1';
  return z.number({ error }).gt(0.5, { error }).lte(1, { error });
};

const judgeKeys = {
  /** Up to and with its version, such as http://localhost:8000/v1. */
  url: text('an address'),
  model: text('a name'),
  /** Environment variable with the key; null: none is sent. */
  key_from: text('the name of an environment variable').nullable().default(null),
  /** Answers to judge of each policy and combination, the first ones. */
  answers: wholeFrom(1).default(16),
  at_once: wholeFrom(1).default(4),
  retries: wholeFrom(0).default(5),
  /** Seconds: of one attempt, and before the second one (doubled before each further one). */
  timeout: positive().default(60),
  pause: positive().default(1),
  temperature: notNegative().default(0),
  max_tokens: wholeFrom(1).default(8),
  /** Money for a million tokens read and written. */
  price: section({ input: notNegative(), output: notNegative() }).nullable().default(null),
};
type JudgeKeys = typeof judgeKeys;
export interface JudgeShape extends JudgeKeys {}

const judgeSchema = section<JudgeShape>(judgeKeys);

const searchKeys = {
  /** cma-es: weights of any sign and sum; grid: those of `grid` and `sums`. */
  method: choice(['cma-es', 'grid']).default('cma-es'),
  /** What the person wants of each wish of the front; null: all alike. */
  target: z.record(z.string(), number(), { error: 'weights by wish' }).nullable().default(null),
  /** Mixes that are tried by cma-es, at most but one. */
  evaluations: wholeFrom(8).default(60),
  /** Runs of layers, of almost one size, that have weights of their own. */
  blocks: wholeFrom(1).default(1),
  /** Taken off for each unit of Σ |weight|, a layer's on average. */
  l1: notNegative().default(0),
  /** Answers that a mix is judged by as it is searched, to training prompts. */
  answers: wholeFrom(1).default(64),
  /** Of the first candidates around the target. */
  deviation: positive().default(0.3),
};
type SearchKeys = typeof searchKeys;
export interface SearchShape extends SearchKeys {}

const searchSchema = section<SearchShape>(searchKeys);

const soupsKeys = {
  /** How policies are trained; its block (rloo …), rollout and train hold for each of them. */
  method: choice(['rloo', 'grpo', 'reinforce++', 'ppo']).default('rloo'),
  wishes: z
    .array(
      section({
        name: text('a name'),
        /** Two wishes of one dimension exclude each other (cheerful, sad); null: a dimension of its own. */
        dimension: text('a name').nullable().default(null),
        /** What answers are worth to the wish; null: what the expert that `pairs` made thinks of them. */
        rewards: z
          .array(rewardTermSchema, { error: 'a list of rewards' })
          .min(1, { error: 'at least one reward' })
          .nullable()
          .default(null),
        /** Preferences by the wish, from which its expert is trained (dpo) in place of rewards. */
        pairs: z
          .union([text('a path').transform((path) => [path]), z.array(text('a path')).min(1)], {
            error: 'a path or a list of paths',
          })
          .nullable()
          .default(null),
        /** What is put behind a prompt to say the wish, for prompting, sft and p_morl. */
        prompt: text('a text').nullable().default(null),
        /** For an endpoint that judges: which of two answers …, such as "is more cheerful". */
        criterion: text('a text').nullable().default(null),
      }),
      { error: 'a list of wishes, each { name, rewards, … }' },
    )
    .min(2, { error: 'at least two wishes' }),
  /** Wishes that the front is over; null: the first of each dimension, three at most. */
  front: z
    .array(text('a wish'), { error: 'a list of wishes' })
    .min(2, { error: 'two wishes or three' })
    .max(3)
    .nullable()
    .default(null),
  /** Ways of merging, by the names of `pluralign merge`. */
  merges: z.array(text('a method of merging'), { error: 'a list of methods of merging' }).default(['cat']),
  /** Mixing next-token distributions at generation, without merging: reverse KL (logits), forward KL, α-divergence. */
  logits: z
    .array(choice(['reverse-kl', 'forward-kl', 'alpha']), { error: 'a list of reverse-kl, forward-kl, alpha' })
    .default([]),
  /** Of merges that do not keep their rank; null: the experts'. */
  rank: wholeFrom(1).nullable().default(null),
  /** Σ w of the grid's weights under `cat`: above 1 extrapolates. */
  sums: z.array(number(), { error: 'a list of numbers' }).min(1, { error: 'at least one number' }).default([1]),
  baselines: z.array(choice(soupBaselines), { error: `a list of ${soupBaselines.join(', ')}` }).default([]),
  /** Share of its own wish in a backbone's reward (Bone Soup). */
  mixing: share().default(0.7),
  /** own: every expert starts from an A of its own; shared: all from one. */
  init: choice(['own', 'shared']).default('own'),
  /** Experts that are trained at a time, over one base held once; each comes to the bits that it comes to alone. */
  side_by_side: wholeFrom(1).default(1),
  /** Weights are multiples of 1/grid. */
  grid: wholeFrom(1).default(4),
  /** Answers to each evaluation prompt at a point. */
  samples: wholeFrom(1).default(1),
  /** From where hypervolume counts, in each wish's own deviations. */
  reference_point: number().default(-1),
  /** Compare policies on every combination of one wish of each dimension. */
  combinations: flag().default(false),
  /** Search the experts' weights for a person, who wants the wishes of the front by some weights. */
  search: searchSchema.nullable().default(null),
  /** A model behind an OpenAI-compatible endpoint that also judges the soup against each policy on the combinations. */
  judge: judgeSchema.nullable().default(null),
};
type SoupsKeys = typeof soupsKeys;
export interface SoupsShape extends SoupsKeys {}

/** Experts for single wishes, mixed after training (Personalized Soups, arXiv 2310.11564). */
export const soupsSchema = section<SoupsShape>(soupsKeys);

type ParsedSoups = z.output<typeof soupsSchema>;
export type ResolvedWish = Omit<ParsedSoups['wishes'][number], 'rewards' | 'dimension'> & {
  dimension: string;
  /** Null of a wish with pairs alone, before its expert is there. */
  rewards: ResolvedRewardTerm[] | null;
};
export type ResolvedSoups = Omit<ParsedSoups, 'wishes' | 'front'> & { wishes: ResolvedWish[]; front: string[] };
