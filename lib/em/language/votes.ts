import type { Group } from '../../data/types.js';

/** Indices of a row's completions, best first and those that were not ranked last. */
export function placesOf({ completions, ranking }: Group): number[] {
  const ranked = ranking ?? [...completions.keys()];
  if (ranked.length === completions.length) return ranked;
  const rest = new Set(completions.keys());
  for (const c of ranked) rest.delete(c);
  return [...ranked, ...rest];
}

/** Choices that a row makes one after another: those of a full ranking, the first m, or with `best` only the first. */
export function stagesOf({ completions, ranking }: Group, best: boolean): number {
  const stages = Math.min(ranking?.length ?? completions.length, completions.length - 1);
  return best ? Math.min(1, stages) : stages;
}

/** The values of a row's completions in the order of `placesOf`. */
export function inPlaces(group: Group, values: ArrayLike<number>, first = 0): Float64Array {
  return Float64Array.from(placesOf(group), (c) => values[first + c]);
}
