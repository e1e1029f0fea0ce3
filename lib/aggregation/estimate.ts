import { Random } from '../base/random.js';
import { PluralignError } from '../native/errors.js';

/**
 * What each type's policy says of samples of each policy: `ratios[j][k]` is log π_k(y|x) / π_ref(y|x) in nats, [samples of
 * j], for y ∼ π_j. Every policy answers the same prompts, `perPrompt` times each, prompt by prompt.
 */
export interface LogRatios {
  ratios: readonly (readonly Float64Array[])[];
  prompts: number;
  perPrompt: number;
}

/** Mean log-ratio of each prompt's samples: `means[k][j]`, [prompts]. Prompts are the units that were drawn. */
export type PromptMeans = readonly (readonly Float64Array[])[];

/** Throws `BAD_DATA` without samples, or where a policy has another number of them. */
export function promptMeans({ ratios, prompts, perPrompt }: LogRatios): Float64Array[][] {
  const types = ratios[0]?.length ?? 0;
  if (types === 0 || prompts === 0)
    throw new PluralignError('BAD_DATA', 'found no samples to estimate from, expected at least one prompt and policy');
  return Array.from({ length: types }, (_, k) =>
    ratios.map((own, j) => {
      if (own[k].length !== prompts * perPrompt)
        throw new PluralignError(
          'BAD_DATA',
          `policy ${j + 1}: found ${own[k].length} samples, expected ${prompts} × ${perPrompt}`,
        );
      const means = new Float64Array(prompts);
      own[k].forEach((value, s) => {
        means[Math.floor(s / perPrompt)] += value / perPrompt;
      });
      return means;
    }),
  );
}

const mean = (values: Float64Array) => values.reduce((a, b) => a + b, 0) / values.length;

/**
 * L_kj = E_{x, y∼π_j}[log π_k(y|x) / π_ref(y|x)] [K, J] as means over samples, and their standard errors, clustered by
 * prompt (0 with a single prompt, where nothing can be said).
 *
 * Source: Chidambaram et al. 2024 (arXiv 2405.15065), the matrix of min-max regret aggregation.
 */
export function estimateL(means: PromptMeans): { L: number[][]; standardErrors: number[][] } {
  return {
    L: means.map((row) => row.map(mean)),
    standardErrors: means.map((row) =>
      row.map((values) => {
        const n = values.length;
        const m = mean(values);
        return n < 2 ? 0 : Math.sqrt(values.reduce((sum, v) => sum + (v - m) ** 2, 0) / (n * (n - 1)));
      }),
    ),
  };
}

/** L again from prompts drawn with replacement, `draws` times: for intervals of anything that is made of L. */
export function bootstrapL(means: PromptMeans, draws: number, seed: number): number[][][] {
  const prompts = means[0][0].length;
  const random = new Random(seed, 0xb007);
  return Array.from({ length: draws }, () => {
    const drawn = Int32Array.from({ length: prompts }, () => random.below(prompts));
    return means.map((row) => row.map((values) => drawn.reduce((sum, i) => sum + values[i], 0) / prompts));
  });
}

/** The central 95 % of draws. */
export function interval(draws: readonly number[]): [number, number] {
  const sorted = [...draws].sort((a, b) => a - b);
  const at = (q: number) => sorted[Math.min(sorted.length - 1, Math.max(0, Math.round(q * (sorted.length - 1))))];
  return [at(0.025), at(0.975)];
}
