import { chord, chordMargin, controllability, hypervolume, nonDominated } from '../evaluation/fronts.js';

/** A mix of wishes and what it came to. */
export interface FrontPoint {
  weights: number[];
  /** [front wishes]. */
  objectives: number[];
  kl: number | null;
  /** No other point of its front is as good everywhere and better somewhere. */
  efficient: boolean;
}

export interface Front {
  name: string;
  points: FrontPoint[];
  hypervolume: number;
  /** Mean and least margin over the chord between the experts, over weights that mix. */
  chord_margin: { mean: number; least: number } | null;
  controllability: number;
}

/** A way of mixing as a front. `experts`: where the chord is between, [wishes]. */
export function frontOf(
  name: string,
  points: readonly { weights: number[]; objectives: number[]; kl: number | null }[],
  experts: readonly number[][] | null,
  reference: number,
): Front {
  const objectives = points.map((p) => p.objectives);
  const efficient = new Set(nonDominated(objectives));
  const mixed = points.filter((p) => p.weights.filter((w) => w > 0).length > 1);
  const margins = experts && mixed.map((p) => chordMargin(p.objectives, experts, p.weights));
  return {
    name,
    points: points.map((p, i) => ({ ...p, efficient: efficient.has(i) })),
    hypervolume: hypervolume(
      objectives,
      objectives[0].map(() => reference),
    ),
    chord_margin:
      margins && margins.length > 0
        ? { mean: margins.reduce((a, b) => a + b, 0) / margins.length, least: Math.min(...margins) }
        : null,
    controllability: controllability(
      points.map((p) => p.weights),
      objectives,
    ),
  };
}

/** The chord itself, as if outcomes were mixed and not policies. */
export function chordFront(weights: readonly number[][], experts: readonly number[][], reference: number): Front {
  const points = weights.map((w) => ({ weights: w, objectives: chord(experts, w), kl: null }));
  return frontOf('chord', points, null, reference);
}
