import type { ResolvedRewardTerm } from '../config/rollout-schema.js';
import type { ResolvedWish } from '../config/soups-schema.js';
import type { Scored } from '../rewards/compose.js';

/** Name of a wish's reward among all wishes' rewards. */
const termName = (wish: ResolvedWish, term: ResolvedRewardTerm): string =>
  wish.rewards!.length === 1 && term.name === term.type ? wish.name : `${wish.name}-${term.name}`;

/** The rewards of some wishes, each wish's times its weight; wishes of weight 0 are left out. */
export function rewardsOf(wishes: readonly ResolvedWish[], weights: readonly number[]): ResolvedRewardTerm[] {
  return wishes.flatMap((wish, i) =>
    weights[i] === 0
      ? []
      : wish.rewards!.map((term) => ({ ...term, name: termName(wish, term), weight: term.weight * weights[i] })),
  );
}

/** What samples are worth to each wish, [wishes][samples], given the scores of `rewardsOf(wishes, 1 … 1)`. */
export function objectivesOf(wishes: readonly ResolvedWish[], scored: Scored): Float64Array[] {
  let at = 0;
  return wishes.map((wish) => {
    const sum = new Float64Array(scored.total.length);
    for (const term of wish.rewards!) {
      const part = scored.parts[at++];
      for (let i = 0; i < sum.length; i++) sum[i] += term.weight * part[i];
    }
    return sum;
  });
}

/** Every way to take one wish of each dimension, as positions among the wishes. */
export function combinationsOf(wishes: readonly ResolvedWish[]): number[][] {
  const dimensions = [...new Set(wishes.map((wish) => wish.dimension))];
  return dimensions.reduce<number[][]>(
    (some, name) =>
      some.flatMap((chosen) => wishes.flatMap((wish, i) => (wish.dimension === name ? [[...chosen, i]] : []))),
    [[]],
  );
}

/** A text that names wishes, to stand behind a prompt. */
export function promptFor(wishes: readonly ResolvedWish[], chosen: readonly number[]): string {
  return chosen.map((i) => wishes[i].prompt ?? '').join('');
}

/** A name for weights in file names and tables: `cheerful0.5-short0.5`. */
export function weightsName(names: readonly string[], weights: readonly number[]): string {
  return names.flatMap((name, i) => (weights[i] === 0 ? [] : [`${name}${Number(weights[i].toFixed(4))}`])).join('-');
}

/** λ with Σ_j λ_j backbone_j = weights, where backbone j has `mixing` of its own wish and the rest shared by the others. */
export function backboneWeights(weights: readonly number[], mixing: number): number[] {
  const n = weights.length;
  const other = (1 - mixing) / (n - 1);
  // (mixing − other) λ + other Σ λ = w, and Σ λ = Σ w.
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((w) => (w - other * sum) / (mixing - other));
}

/** The mixture of wishes that backbone j is trained on. */
export function backbone(j: number, n: number, mixing: number): number[] {
  return Array.from({ length: n }, (_, i) => (i === j ? mixing : (1 - mixing) / (n - 1)));
}
