import { isAborted, PluralignError } from '../native/errors.js';
import type { RewardFunction, Sample } from './types.js';

/** A reward with what is done to its values before they are added up. */
export interface RewardTerm {
  name: string;
  weight: number;
  /** Shift and scale to mean 0 and deviation 1 on samples of the reference. */
  normalise: boolean;
  /** Values (normalised, where they are) are cut to ± this; null: as they come. */
  bound: number | null;
  of: RewardFunction;
}

/** Mean and deviation of each reward on samples of the reference, [rewards] each. */
export interface RewardScale {
  mean: number[];
  deviation: number[];
}

/** What rewards say of some samples. */
export interface Scored {
  /** As the rewards gave them, [rewards][samples]. */
  raw: Float64Array[];
  /** Normalised and cut, before their weights, [rewards][samples]. */
  parts: Float64Array[];
  /** Σ weight · part, [samples]. */
  total: Float64Array;
}

const quote = (text: string) => JSON.stringify(text.length > 60 ? `${text.slice(0, 60)}…` : text);

async function checked({ name, of }: RewardTerm, samples: readonly Sample[]): Promise<Float64Array> {
  const place = `reward ${JSON.stringify(name)}`;
  let found: ArrayLike<number>;
  try {
    found = await of(samples);
  } catch (error) {
    if (isAborted(error) || error instanceof PluralignError) throw error;
    throw new PluralignError('BAD_ARGUMENT', `${place} threw: ${(error as Error)?.message ?? error}`, { cause: error });
  }
  if (typeof found?.length !== 'number' || found.length !== samples.length)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${place}: found ${typeof found?.length === 'number' ? `${found.length} values` : typeof found}, expected ` +
        `one number for each of ${samples.length} samples`,
    );
  const values = Float64Array.from(found, Number);
  const bad = values.findIndex((value) => !Number.isFinite(value));
  if (bad !== -1)
    throw new PluralignError(
      'NON_FINITE',
      `${place} is ${String(found[bad])} for the completion ${quote(samples[bad].completion)}, expected a finite number`,
    );
  return values;
}

/** Mean and deviation (n − 1), [2]. */
export function momentsOf(values: ArrayLike<number>): [number, number] {
  const n = values.length;
  let sum = 0;
  for (let i = 0; i < n; i++) sum += values[i];
  const mean = sum / n;
  let squares = 0;
  for (let i = 0; i < n; i++) squares += (values[i] - mean) ** 2;
  return [mean, n > 1 ? Math.sqrt(squares / (n - 1)) : 0];
}

/** Several rewards as one: Σ_k w_k clip((r_k − mean_k) / deviation_k, ± bound_k). */
export class Rewards {
  scale: RewardScale | null = null;

  constructor(readonly terms: readonly RewardTerm[]) {}

  get names(): string[] {
    return this.terms.map((term) => term.name);
  }

  /** By name, as `rewardScale` of `train` takes it. */
  scaleByName(): Record<string, { mean: number; deviation: number }> {
    const { mean, deviation } = this.scale!;
    return Object.fromEntries(this.names.map((name, k) => [name, { mean: mean[k], deviation: deviation[k] }]));
  }

  /** Takes a scale that is known; false where it lacks a reward. */
  takeScale(known: Readonly<Record<string, { mean: number; deviation: number }>>): boolean {
    if (this.names.some((name) => !Object.hasOwn(known, name))) return false;
    this.scale = {
      mean: this.names.map((name) => known[name].mean),
      deviation: this.names.map((name) => known[name].deviation),
    };
    return true;
  }

  /** Some reward wants samples of the reference first. */
  get wantsScale(): boolean {
    return this.scale === null && this.terms.some((term) => term.normalise);
  }

  /** Takes mean and deviation from samples of the reference. Throws `BAD_DATA` where a reward is the same for all. */
  async fit(samples: readonly Sample[]): Promise<RewardScale> {
    const scale: RewardScale = { mean: [], deviation: [] };
    for (const term of this.terms) {
      const [mean, deviation] = term.normalise ? momentsOf(await checked(term, samples)) : [0, 1];
      if (!(deviation > 1e-12 * Math.max(1, Math.abs(mean))))
        throw new PluralignError(
          'BAD_DATA',
          `reward ${JSON.stringify(term.name)} is ${mean} for all ${samples.length} samples of the reference: nothing ` +
            'can be learnt from it, and it cannot be normalised (normalise: false leaves it as it is)',
        );
      scale.mean.push(mean);
      scale.deviation.push(deviation);
    }
    this.scale = scale;
    return scale;
  }

  /** Throws `BAD_ARGUMENT` naming a reward that throws or gives another length, `NON_FINITE` with the completion. */
  async score(samples: readonly Sample[]): Promise<Scored> {
    const total = new Float64Array(samples.length);
    const raw: Float64Array[] = [];
    const parts: Float64Array[] = [];
    for (const [k, term] of this.terms.entries()) {
      const values = await checked(term, samples);
      const [mean, deviation] = this.scale ? [this.scale.mean[k], this.scale.deviation[k]] : [0, 1];
      const bound = term.bound ?? Number.POSITIVE_INFINITY;
      const part = values.map((value) => Math.max(-bound, Math.min(bound, (value - mean) / deviation)));
      for (let i = 0; i < total.length; i++) total[i] += term.weight * part[i];
      raw.push(values);
      parts.push(part);
    }
    return { raw, parts, total };
  }
}
