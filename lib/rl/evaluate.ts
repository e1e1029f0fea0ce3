import type { Rewards, Scored } from '../rewards/compose.js';
import type { Sample } from '../rewards/types.js';
import type { Prompt } from './prompts.js';
import { type Scorers, tokenScores } from './rollout.js';
import type { SampleFunction } from './sampling.js';
import { samplesOf } from './sampling.js';

/** What a policy's answers to some prompts are worth. */
export interface PolicyScores {
  rows: number;
  /** Mean of the rewards as one; its standard error. */
  reward: number;
  reward_error: number;
  completion_length: number;
  ended: number;
  /** KL of a sequence from the reference by the samples, in nats; where it was asked for. */
  kl?: number;
  /** Of each annotator's prompts, where any are named. */
  annotators?: Record<string, { rows: number; reward: number; kl?: number }>;
  /** `rewards/NAME`: mean of each reward as it is. */
  [name: `rewards/${string}`]: number;
}

export interface Answered {
  scores: PolicyScores;
  samples: Sample[];
  scored: Scored;
}

/** Answers each prompt once and scores the answers. Without `reference` there is no KL. */
export async function evaluatePolicy(
  prompts: readonly Prompt[],
  sample: SampleFunction,
  seed: number,
  rewards: Rewards,
  model: Scorers['model'],
  compare: null | {
    policy: Scorers['reference'];
    reference: Scorers['reference'];
    options: Pick<Scorers, 'temperature' | 'maxTokens' | 'abort'>;
  },
): Promise<Answered> {
  const answers = await sample(prompts, seed);
  const samples = samplesOf(prompts, answers, model);
  const scored = await rewards.score(samples);
  const mean = (values: ArrayLike<number>) => {
    let sum = 0;
    for (let i = 0; i < values.length; i++) sum += values[i];
    return sum / Math.max(1, values.length);
  };
  const reward = mean(scored.total);
  const n = samples.length;
  const scores: PolicyScores = {
    rows: n,
    reward,
    reward_error: Math.sqrt(mean(scored.total.map((r) => (r - reward) ** 2)) / Math.max(1, n - 1)),
    completion_length: mean(samples.map((s) => s.ids.length)),
    ended: mean(samples.map((s) => (s.ended ? 1 : 0))),
  };
  rewards.names.forEach((name, k) => {
    scores[`rewards/${name}`] = mean(scored.raw[k]);
  });
  if (compare) {
    const groups = prompts.map(({ text: _, ...prompt }, i) => ({ ...prompt, completions: [answers[i]] }));
    const own = await tokenScores(groups, compare.policy, 'logps', compare.options);
    const other = await tokenScores(groups, compare.reference, 'logps', compare.options);
    let at = 0;
    const each = answers.map((ids) => {
      let kl = 0;
      for (const end = at + ids.length; at < end; at++) kl += own[at] - other[at];
      return kl;
    });
    scores.kl = mean(each);
    const annotators = byAnnotator(samples, scored.total, each);
    if (annotators) scores.annotators = annotators;
  }
  return { scores, samples, scored };
}

/** Means over each annotator's answers; null where nobody is named. */
function byAnnotator(
  samples: readonly Sample[],
  rewards: ArrayLike<number>,
  kl: readonly number[],
): Record<string, { rows: number; reward: number; kl: number }> | null {
  const sums = new Map<string, { rows: number; reward: number; kl: number }>();
  samples.forEach(({ annotator }, i) => {
    if (annotator === undefined) return;
    const sum = sums.get(annotator) ?? { rows: 0, reward: 0, kl: 0 };
    sums.set(annotator, { rows: sum.rows + 1, reward: sum.reward + rewards[i], kl: sum.kl + kl[i] });
  });
  if (sums.size === 0) return null;
  return Object.fromEntries(
    [...sums].map(([name, { rows, reward, kl: far }]) => [name, { rows, reward: reward / rows, kl: far / rows }]),
  );
}
