import { describe, expect, it } from 'vitest';
import { rewardLoss, tieLoss, tieModels, tieNu } from '../lib/losses/index.js';
import { close, differences, fill, random, sizes } from './losses-helpers.js';

const only = (tied: number, d: number, type: (typeof tieModels)[number], nu: number) =>
  Math.exp(-tieLoss({ differences: Float64Array.of(d), tied: Uint8Array.of(tied) }, { type, nu }).loss);

describe.each(tieModels)('votes with ties: %s', (type) => {
  it('are the probabilities of the paper', () => {
    for (const d of [-3, 0, 0.7, 40])
      for (const nu of [1.01, 2, 9]) {
        // Strengths p = eʳ, as the papers write them.
        const [p, q] = [Math.exp(d), 1];
        const total = p + q + nu * Math.sqrt(p * q);
        const win = type === 'rao_kupper' ? p / (p + nu * q) : p / total;
        const tie =
          type === 'rao_kupper'
            ? ((nu * nu - 1) * p * q) / ((p + nu * q) * (q + nu * p))
            : (nu * Math.sqrt(p * q)) / total;
        close([only(0, d, type, nu)], [win], 1e-13);
        close([only(1, d, type, nu)], [tie], 1e-13);
        close([only(0, d, type, nu) + only(0, -d, type, nu) + only(1, d, type, nu)], [1], 1e-13);
      }
  });

  it('have the gradients of finite differences, for any number of rows', () => {
    for (const n of sizes) {
      const u = random(90 + n);
      const scores = {
        differences: fill(n, () => 5 * (u() - 0.5)),
        tied: Uint8Array.from(fill(n, () => (u() < 0.4 ? 1 : 0))),
        weights: fill(n, () => u()),
      };
      const logNu = Float64Array.of(0.4);
      const run = (normaliser?: number) => tieLoss(scores, { type, nu: Math.exp(logNu[0]), normaliser });
      const got = run();
      const total = scores.weights.reduce((a, w) => a + w, 0);
      if (n > 0) close([got.loss], [got.rowLosses.reduce((a, l, i) => a + scores.weights[i] * l, 0) / total], 1e-12);
      else expect(got.loss).toBe(0);
      close(
        got.dDifferences,
        differences(scores.differences, () => run().loss),
      );
      close(
        [got.dLogNu],
        differences(logNu, () => run().loss),
      );
      // Parts of a step add up.
      if (total > 0) close([run(3).loss * 3], [got.loss * total], 1e-12);
    }
  });

  it('stay finite far out, and hand NaN on', () => {
    for (const d of [-1e4, 1e4])
      for (const tied of [0, 1]) {
        const { loss, dDifferences, dLogNu } = tieLoss(
          { differences: Float64Array.of(d), tied: Uint8Array.of(tied) },
          { type, nu: 1.5 },
        );
        expect([loss, dDifferences[0], dLogNu].every(Number.isFinite)).toBe(true);
      }
    expect(
      tieLoss({ differences: Float64Array.of(Number.NaN), tied: Uint8Array.of(1) }, { type, nu: 2 }).loss,
    ).toBeNaN();
  });

  it('without ties come close to Bradley–Terry', () => {
    const chosen = Float64Array.of(0.3, -2);
    const rejected = Float64Array.of(0.1, 1);
    const plain = rewardLoss({ chosen, rejected }).loss;
    const nu = type === 'rao_kupper' ? 1 + 1e-9 : 1e-9;
    const { loss } = tieLoss(
      { differences: chosen.map((c, i) => c - rejected[i]), tied: new Uint8Array(2) },
      { type, nu },
    );
    close([loss], [plain], 1e-7);
  });

  it('between equals tie as often as the share that ν was taken from', () => {
    for (const share of [0.05, 0.5, 0.9]) close([only(1, 0, type, tieNu(type, share))], [share], 1e-12);
    expect(only(1, 0, type, tieNu(type, 0))).toBeGreaterThan(0);
    expect(Number.isFinite(tieNu(type, 1))).toBe(true);
  });

  it('refuse a ν out of range and arrays of unequal length', () => {
    const one = { differences: Float64Array.of(1), tied: Uint8Array.of(0) };
    expect(() => tieLoss(one, { type, nu: type === 'rao_kupper' ? 1 : 0 })).toThrow(/nu is/);
    expect(() => tieLoss({ ...one, tied: new Uint8Array(2) }, { type, nu: 2 })).toThrow(/tied has 2/);
    expect(() => tieLoss(one, { type: 'other' as 'davidson', nu: 2 })).toThrow(/no tie model "other"/);
  });
});
