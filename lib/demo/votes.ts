import { Random } from '../base/random.js';
import { cheerfulness, type Taste, utility } from './tastes.js';

export interface Annotator {
  name: string;
  group: string;
  taste: Taste;
}

/** Two groups of opposite taste. */
export const groups = ['sunny', 'rainy'] as const;

/** Weight of cheerfulness in everybody's taste, up to its sign. */
const moodWeight = 2.5;
/** Largest weight of wordiness; people of one group differ in it. */
const wordWeight = 0.6;
/** Pairs closer in cheerfulness than this are not put to the vote: little can be learnt from them. */
const leastDifference = 0.5;

const people: Record<(typeof groups)[number], string[]> = {
  sunny: ['Ada', 'Bo', 'Cleo', 'Dan', 'Eve', 'Fay'],
  rainy: ['Gus', 'Hal', 'Ivy', 'Joe', 'Kim', 'Lou'],
};

/** Six who love cheerful stories and six who love sad ones; in each group from friends of plain to friends of ornate text. */
export function makeAnnotators(): Annotator[] {
  return groups.flatMap((group, g) =>
    people[group].map((name, i, all) => ({
      name,
      group,
      taste: {
        cheerfulness: g === 0 ? moodWeight : -moodWeight,
        wordiness: wordWeight * ((2 * i) / (all.length - 1) - 1),
      },
    })),
  );
}

/** One beginning and different endings that a model wrote for it. */
export interface Candidates {
  prompt: string;
  endings: string[];
}

/** A row of preference data. */
export interface Vote {
  prompt: string;
  chosen: string;
  rejected: string;
  annotator: string;
  group: string;
}

/**
 * Whether the annotator takes `a` over `b`, drawn from Bradley and Terry's model: P = σ(u(a) − u(b)). Voters are noisy, so
 * no policy can foresee every vote.
 */
export function prefers(annotator: Annotator, a: string, b: string, random: Random): boolean {
  const difference = utility(annotator.taste, a) - utility(annotator.taste, b);
  return random.uniform() < 1 / (1 + Math.exp(-difference));
}

/**
 * `each` votes of every annotator, on different pairs of endings that differ in mood (fewer where `candidates` have fewer such
 * pairs). An annotator's votes do not depend on the others.
 */
export function collectVotes(
  annotators: readonly Annotator[],
  candidates: readonly Candidates[],
  each: number,
  seed: number,
): Vote[] {
  const pairs = candidates.flatMap(({ prompt, endings }) =>
    endings.flatMap((a, i) =>
      endings
        .slice(i + 1)
        .filter((b) => Math.abs(cheerfulness(a) - cheerfulness(b)) >= leastDifference)
        .map((b) => ({ prompt, a, b })),
    ),
  );
  return annotators.flatMap((annotator, i) => {
    const random = new Random(seed, i);
    const left = [...pairs];
    return Array.from({ length: Math.min(each, pairs.length) }, () => {
      const [{ prompt, a, b }] = left.splice(random.below(left.length), 1);
      const [chosen, rejected] = prefers(annotator, a, b, random) ? [a, b] : [b, a];
      return { prompt, chosen, rejected, annotator: annotator.name, group: annotator.group };
    });
  });
}
