import { Random } from '../base/random.js';

export interface Interval {
  mean: number;
  low: number;
  high: number;
}

/**
 * Mean of paired differences between two models with a percentile bootstrap interval (Efron 1979) over seeds and voters:
 * seeds are drawn with replacement, then the voters of each drawn seed, so that neither a lucky seed nor a few voters
 * carry a claim.
 *
 * @param differences for each seed the voters' differences (model a minus model b on the same rows); empty seeds are left out
 */
export function pairedBootstrap(
  differences: readonly (readonly number[])[],
  options: { draws?: number; level?: number; seed?: number } = {},
): Interval {
  const { draws = 2000, level = 0.95, seed = 0 } = options;
  const seeds = differences.filter((voters) => voters.length > 0);
  const average = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const random = new Random(seed, 0xb007);
  const means = Float64Array.from({ length: seeds.length > 0 ? draws : 0 }, () => {
    let sum = 0;
    for (let s = 0; s < seeds.length; s++) {
      const voters = seeds[random.below(seeds.length)];
      let part = 0;
      for (let v = 0; v < voters.length; v++) part += voters[random.below(voters.length)];
      sum += part / voters.length;
    }
    return sum / seeds.length;
  }).sort();
  const at = (share: number) => means[Math.min(draws - 1, Math.max(0, Math.round(share * (draws - 1))))] ?? Number.NaN;
  return { mean: average(seeds.map(average)), low: at((1 - level) / 2), high: at((1 + level) / 2) };
}

/** Mean of the tenth of the values (one at least) that are lowest; NaN for none. */
export function worstDecile(values: readonly number[]): number {
  const tenth = [...values].sort((a, b) => a - b).slice(0, Math.max(1, Math.floor(values.length / 10)));
  return tenth.reduce((a, b) => a + b, 0) / tenth.length;
}
