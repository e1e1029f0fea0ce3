// Fronts against brute force, judges that favour a place, intervals that hold what they should.
import { describe, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
import {
  chord,
  chordMargin,
  controllability,
  hypervolume,
  nonDominated,
  rankCorrelation,
  simplexGrid,
} from '../lib/evaluation/fronts.js';
import { judgeBy, type Verdict, verdict, winRate } from '../lib/evaluation/pairwise.js';

/** Volume by inclusion and exclusion over all sets of points. */
function byInclusion(points: number[][], reference: number[]): number {
  let sum = 0;
  for (let set = 1; set < 1 << points.length; set++) {
    const inside = points.filter((_, i) => set & (1 << i));
    const box = reference.reduce((v, r, k) => v * Math.max(0, Math.min(...inside.map((p) => p[k])) - r), 1);
    sum += inside.length % 2 === 1 ? box : -box;
  }
  return sum;
}

describe('fronts', () => {
  it.each([2, 3, 4])('exact hypervolume of %i objectives', (objectives) => {
    const random = new Random(objectives);
    for (let round = 0; round < 30; round++) {
      const count = random.below(8);
      // Coarse values, so that there are ties; some lie below the reference.
      const points = Array.from({ length: count }, () =>
        Array.from({ length: objectives }, () => random.below(6) / 2 - 0.5),
      );
      const reference = Array.from({ length: objectives }, () => 0);
      expect(hypervolume(points, reference)).toBeCloseTo(byInclusion(points, reference), 10);
    }
  });

  it('refuses points of another size and values that are none', () => {
    expect(() => hypervolume([[1, 2, 3]], [0, 0])).toThrow(/expected 2 finite numbers/);
    expect(() => hypervolume([[1, Number.NaN]], [0, 0])).toThrow(/finite/);
    expect(hypervolume([], [0, 0])).toBe(0);
  });

  it('keeps what no point dominates, equal points too', () => {
    expect(
      nonDominated([
        [0, 1],
        [1, 0],
        [0, 0],
        [1, 0],
        [0.5, 0.5],
        [0.4, 0.5],
      ]),
    ).toEqual([0, 1, 3, 4]);
  });

  it('covers the simplex', () => {
    expect(simplexGrid(2, 2)).toEqual([
      [1, 0],
      [0.5, 0.5],
      [0, 1],
    ]);
    const three = simplexGrid(3, 4);
    expect(three).toHaveLength(15);
    for (const w of three) expect(w.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 12);
    expect(new Set(three.map(String)).size).toBe(15);
  });

  it('measures the distance from the chord, and whether weights steer', () => {
    const experts = [
      [1, 0],
      [0, 2],
    ];
    expect(chord(experts, [0.25, 0.75])).toEqual([0.25, 1.5]);
    expect(chordMargin([0.5, 1.5], experts, [0.25, 0.75])).toBeCloseTo(0.0625, 12);
    expect(chordMargin([1, 0], experts, [1, 0])).toBe(0);
    const weights = simplexGrid(2, 4);
    expect(controllability(weights, weights)).toBeCloseTo(1, 12);
    expect(
      controllability(
        weights,
        weights.map((w) => [w[1], w[0]]),
      ),
    ).toBeCloseTo(-1, 12);
    expect(rankCorrelation([1, 2, 2, 3], [10, 30, 20, 40])).toBeCloseTo(0.9486832980505138, 10);
    expect(rankCorrelation([1, 1], [1, 2])).toBe(0);
  });
});

describe('pairwise comparison', () => {
  it('lets a judge who favours a place decide nothing', async () => {
    expect(await verdict(() => 1, 'p', 'a', 'b')).toBe(0);
    expect(await verdict(() => -1, 'p', 'a', 'b')).toBe(0);
    const longer = judgeBy((_, answer) => answer.length);
    expect(await verdict(longer, 'p', 'aaa', 'b')).toBe(1);
    expect(await verdict(longer, 'p', 'a', 'bbb')).toBe(-1);
    expect(await verdict(longer, 'p', 'a', 'b')).toBe(0);
    expect(
      await verdict(
        judgeBy((_, answer) => answer.length, 2),
        'p',
        'aaa',
        'b',
      ),
    ).toBe(0);
    await expect(verdict(() => Number.NaN, 'p', 'a', 'b')).rejects.toThrow(/the judge said NaN/);
  });

  it('counts ties as halves, with an interval over prompts that holds the truth in about 95 of 100', () => {
    const rows: Verdict[][] = [
      [1, 0],
      [1, 1],
      [-1, 0],
      [1, -1],
    ];
    expect(winRate(rows)).toMatchObject({ win: 0.5, tie: 0.25, lose: 0.25, rate: 0.625 });
    const random = new Random(7);
    let inside = 0;
    for (let round = 0; round < 200; round++) {
      const drawn = Array.from({ length: 60 }, (): Verdict[] => [random.uniform() < 0.6 ? 1 : -1]);
      const { interval } = winRate(drawn, round, 400);
      inside += interval[0] <= 0.6 && 0.6 <= interval[1] ? 1 : 0;
    }
    expect(inside).toBeGreaterThan(180);
  });
});
