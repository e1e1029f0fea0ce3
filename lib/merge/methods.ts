import { PluralignError } from '../native/errors.js';
import type { Combine, Keep } from '../native/merge.js';

/** Numbers that some methods take. */
export interface MergeSettings {
  /** Share of an update's elements that stays, in (0, 1]. */
  density: number;
  /** DELLA: the probability of staying runs from density − epsilon/2 to density + epsilon/2. */
  epsilon: number;
  /** Breadcrumbs: share of the largest elements that goes. */
  gamma: number;
  /** Factor on the merged update. */
  lambda: number;
}

export interface MergeMethod {
  keep: Keep;
  combine: Combine;
  /** What is written where no rank is asked for: everything, or as PEFT's `svd` the largest rank of the experts. */
  rank: 'exact' | 'largest';
  uses: readonly (keyof MergeSettings)[];
  random?: true;
  experts?: 2;
  /** The method takes no weights: all experts count alike. */
  unweighted?: true;
  says: string;
}

const exact = { rank: 'exact' } as const;
const sparse = { ...exact, uses: ['density', 'lambda'] } as const;

const methods: Readonly<Record<string, MergeMethod>> = {
  cat: { keep: 'all', combine: 'sum', ...exact, uses: [], says: 'Σ w τ, by concatenating factors' },
  svd: { keep: 'all', combine: 'sum', rank: 'largest', uses: [], says: 'Σ w τ, its best approximation of a rank' },
  linear: { keep: 'all', combine: 'average', ...exact, uses: [], says: 'Σ w τ / Σ w' },
  task_arithmetic: { keep: 'all', combine: 'sum', ...exact, uses: ['lambda'], says: 'λ Σ w τ' },
  ties: { keep: 'magnitude', combine: 'elect', ...sparse, says: 'largest |τ|, sign elected, mean of those that agree' },
  dare_linear: { keep: 'random', combine: 'sum', ...sparse, random: true, says: 'λ Σ w τ of a random part, scaled up' },
  dare_ties: { keep: 'random', combine: 'elect', ...sparse, random: true, says: 'the same with signs elected' },
  magnitude_prune: { keep: 'magnitude', combine: 'sum', ...sparse, says: 'λ Σ w τ of the largest |τ|' },
  della: {
    keep: 'ranked',
    combine: 'elect',
    ...exact,
    uses: ['density', 'epsilon', 'lambda'],
    random: true,
    says: 'random part by rank of |τ| in its row, signs elected',
  },
  della_linear: {
    keep: 'ranked',
    combine: 'sum',
    ...exact,
    uses: ['density', 'epsilon', 'lambda'],
    random: true,
    says: 'the same, summed',
  },
  breadcrumbs: {
    keep: 'breadcrumbs',
    combine: 'sum',
    ...exact,
    uses: ['density', 'gamma', 'lambda'],
    says: 'λ Σ w τ without the largest and the smallest |τ|',
  },
  breadcrumbs_ties: {
    keep: 'breadcrumbs',
    combine: 'elect',
    ...exact,
    uses: ['density', 'gamma', 'lambda'],
    says: 'the same with signs elected',
  },
  slerp: { keep: 'all', combine: 'slerp', ...exact, uses: [], experts: 2, says: 'along the arc between two updates' },
  nuslerp: { keep: 'all', combine: 'nuslerp', ...exact, uses: [], experts: 2, says: 'the same for each row' },
  multi_slerp: {
    keep: 'all',
    combine: 'multislerp',
    ...exact,
    uses: [],
    says: 'mean direction on the sphere, mean norm',
  },
  model_stock: {
    keep: 'all',
    combine: 'stock',
    ...exact,
    uses: [],
    unweighted: true,
    says: 't · mean, t from the angle between updates',
  },
};

/** Methods that PEFT has once more with `_svd` behind their names: the best approximation of the largest rank of the experts. */
const approximated = ['ties', 'dare_linear', 'dare_ties', 'magnitude_prune'];

/** Every method but `factor_average`, which does not act on updates. τ: an expert's update; w: its weight. */
export const mergeMethods: Readonly<Record<string, MergeMethod>> = {
  ...methods,
  ...Object.fromEntries(
    approximated.map((name): [string, MergeMethod] => [
      `${name}_svd`,
      { ...methods[name], rank: 'largest', says: `${name}, its best approximation of a rank` },
    ]),
  ),
};

/** Averages A and B apart, as published code did: only Σ w² of each update survives where the A's differ. */
export const factorAverage = 'factor_average';

export const methodNames: readonly string[] = [...Object.keys(mergeMethods), factorAverage];

const defaults: MergeSettings = { density: 0.5, epsilon: 0.2, gamma: 0.01, lambda: 1 };

/** Whether the merged update of low-rank experts has at most the sum of their ranks. */
export function keepsRank(method: MergeMethod): boolean {
  return method.keep === 'all' && method.combine !== 'elect';
}

/** Whether the merged update can stand as factors without a rank being given: its own, or the largest of the experts. */
export function isLowRank(method: MergeMethod): boolean {
  return keepsRank(method) || method.rank === 'largest';
}

/** The settings of a method, checked. Throws `BAD_ARGUMENT` for one that it has no use for or that is out of range. */
export function mergeSettings(name: string, method: MergeMethod | null, given: Partial<MergeSettings>): MergeSettings {
  const settings = { ...defaults };
  for (const [key, value] of Object.entries(given) as [keyof MergeSettings, number | undefined][]) {
    if (value === undefined) continue;
    if (!method?.uses.includes(key)) {
      const uses = method?.uses.length ? method.uses.join(', ') : 'none of density, epsilon, gamma, lambda';
      throw new PluralignError('BAD_ARGUMENT', `--${key}: ${name} does not take it; it takes ${uses}`);
    }
    settings[key] = value;
  }
  const fail = (key: string, value: number, expected: string): never => {
    throw new PluralignError('BAD_ARGUMENT', `--${key}: found ${value}, expected ${expected}`);
  };
  const { density, epsilon, gamma, lambda } = settings;
  if (!(density > 0 && density <= 1)) fail('density', density, 'a number in (0, 1]');
  if (!(gamma >= 0 && gamma < 1)) fail('gamma', gamma, 'a number in [0, 1)');
  if (!Number.isFinite(lambda)) fail('lambda', lambda, 'a number');
  if (method?.keep === 'ranked' && !(epsilon >= 0 && density - epsilon / 2 > 0 && density + epsilon / 2 <= 1))
    fail('epsilon', epsilon, `one that keeps density ± epsilon/2 in (0, 1] (density is ${density})`);
  return settings;
}

/**
 * Weights in the order of the experts; equal ones (1/N) where none are given. Throws `BAD_ARGUMENT` naming an expert without
 * weight, a weight without expert, one that is no number, or weights that are all zero.
 */
export function mergeWeights(names: readonly string[], given: Readonly<Record<string, number>> | undefined): number[] {
  const fail = (message: string): never => {
    throw new PluralignError('BAD_ARGUMENT', `--weights: ${message}`);
  };
  if (given === undefined) return names.map(() => 1 / names.length);
  const weights = weightsOf(names, given, fail);
  if (weights.every((w) => w === 0)) fail('all are zero: nothing would be left');
  return weights;
}

/** Weights by name in the order of the experts: a number for each, and nobody else's. */
export function weightsOf(
  names: readonly string[],
  given: Readonly<Record<string, number>>,
  fail: (message: string) => never,
): number[] {
  for (const [name, weight] of Object.entries(given)) {
    if (!names.includes(name)) fail(`there is no expert '${name}'; the experts are ${names.join(', ')}`);
    if (typeof weight !== 'number' || !Number.isFinite(weight))
      fail(`the weight of '${name}' is ${JSON.stringify(weight) ?? weight}, expected a number`);
  }
  return names.map((name) => (Object.hasOwn(given, name) ? given[name] : fail(`'${name}' has none; 0 leaves it out`)));
}
