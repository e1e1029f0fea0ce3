import { describe, expect, it } from 'vitest';
import {
  type Divergence,
  dpoMetrics,
  type PairLossOptions,
  type PairLossType,
  type PairScores,
  pairLoss,
  pairLossTypes,
} from '../lib/losses/index.js';
import { close, differences, fill, L, pairs, sigma, sizes } from './losses-helpers.js';

function rows(scores: PairScores, from: number, to: number): PairScores {
  return Object.fromEntries(
    Object.entries(scores).map(([name, x]: [string, Float64Array]) => [name, x.slice(from, to)]),
  ) as unknown as PairScores;
}

const types = Object.keys(pairLossTypes) as PairLossType[];
const transport = (type: PairLossType): boolean => type === 'aot' || type === 'aot_unpaired';
function optionsOf(type: PairLossType, more: Partial<PairLossOptions> = {}): PairLossOptions {
  return { type, beta: 0.3, ...(type === 'exo_pair' ? { labelSmoothing: 1e-3 } : {}), ...more };
}

// The formulas once more, each from its paper.
interface Formula {
  b: number;
  e: number;
  pw: number;
  pl: number;
  w: number;
  l: number;
  sw: number;
  sl: number;
  nw: number;
  nl: number;
  nll: number;
  delta: number;
}

const odds = (logp: number): number => Math.exp(logp) / (1 - Math.exp(logp));
const formulas: Record<string, (f: Formula) => number> = {
  sigmoid: ({ b, e, sw, sl }) => L(b * (sw - sl), e),
  robust: ({ b, e, sw, sl }) =>
    (-(1 - e) * Math.log(sigma(b * (sw - sl))) + e * Math.log(sigma(-b * (sw - sl)))) / (1 - 2 * e),
  hinge: ({ b, sw, sl }) => Math.max(0, 1 - b * (sw - sl)),
  ipo: ({ b, sw, sl, nw, nl }) => (sw / nw - sl / nl - 1 / (2 * b)) ** 2,
  exo_pair: ({ b, e, sw, sl }) => {
    const q = sigma(b * (sw - sl));
    return q * Math.log(q / (1 - e)) + (1 - q) * Math.log((1 - q) / e);
  },
  nca_pair: ({ b, w, l }) => -Math.log(sigma(b * w)) - 0.5 * Math.log(sigma(-b * w)) - 0.5 * Math.log(sigma(-b * l)),
  bco_pair: ({ b, w, l, delta }) => -Math.log(sigma(b * w - delta)) - Math.log(sigma(-(b * l - delta))),
  sppo_hard: ({ b, w, l }) => (w - 1 / (2 * b)) ** 2 + (l + 1 / (2 * b)) ** 2,
  apo_zero: ({ b, w, l }) => 1 - sigma(b * w) + sigma(b * l),
  apo_down: ({ b, w, l }) => sigma(b * w) + 1 - sigma(b * (w - l)),
  discopop: ({ b, sw, sl }) => {
    const x = b * (sw - sl);
    const m = sigma(x / 0.05);
    return (1 - m) * -Math.log(sigma(x)) + m * Math.exp(-x);
  },
  sft: ({ nll }) => nll,
  sigmoid_norm: ({ b, e, sw, sl, nw, nl }) => L(b * (sw / nw - sl / nl), e),
  simpo: ({ b, e, pw, pl, nw, nl }) => L(b * (pw / nw - pl / nl) - 0.5, e),
  cpo: ({ b, e, pw, pl, nll }) => L(b * (pw - pl), e) + nll,
  orpo: ({ b, pw, pl, nw, nl, nll }) => nll - b * Math.log(sigma(Math.log(odds(pw / nw)) - Math.log(odds(pl / nl)))),
};

const scoreOf: Record<Divergence, (rho: number, a: number) => number> = {
  reverse_kl: (rho) => rho,
  forward_kl: (rho) => 1 - 1 / Math.exp(rho),
  js_divergence: (rho) => Math.log((2 * Math.exp(rho)) / (Math.exp(rho) + 1)),
  alpha_divergence: (rho, a) => (Math.exp(rho) ** (a - 1) - 1) / (a - 1),
};

function oracle(s: PairScores, o: PairLossOptions): { loss: number; rowLosses: Float64Array } {
  const type = o.type as PairLossType;
  const n = s.chosen.length;
  const w = s.weights ?? fill(n, () => 1);
  const total = w.reduce((a, x) => a + x, 0);
  const tokens = w.reduce((a, x, i) => a + x * s.chosenTokens[i], 0);
  const rho = (p: Float64Array, r: Float64Array): Float64Array => p.map((x, i) => x - r[i]);
  const [rw, rl] = [rho(s.chosen, s.refChosen!), rho(s.rejected, s.refRejected!)];
  const delta = w.reduce((a, x, i) => a + x * o.beta * (rw[i] + rl[i]), 0) / (2 * total);
  const score = (x: number): number => scoreOf[o.divergence ?? 'reverse_kl'](x, o.divergenceAlpha ?? 0.5);
  const rowLosses = fill(n, (i) =>
    formulas[type]({
      b: o.beta,
      e: o.labelSmoothing ?? 0,
      pw: s.chosen[i],
      pl: s.rejected[i],
      w: rw[i],
      l: rl[i],
      sw: score(rw[i]),
      sl: score(rl[i]),
      nw: s.chosenTokens[i],
      nl: s.rejectedTokens[i],
      nll: (-s.chosen[i] * total) / tokens,
      delta,
    }),
  );
  return { loss: rowLosses.reduce((a, x, i) => a + w[i] * x, 0) / total, rowLosses };
}

/** δ does not carry gradient: hold it at its value while differences are taken. */
function frozen(s: PairScores, o: PairLossOptions): PairLossOptions {
  return { ...o, delta: pairLoss(s, o).delta, freezeDelta: true };
}

function expectGradient(s: PairScores, o: PairLossOptions): void {
  const held = frozen(s, o);
  const { dChosen, dRejected } = pairLoss(s, o);
  const loss = (): number => pairLoss(s, held).loss;
  close(dChosen, differences(s.chosen, loss));
  close(dRejected, differences(s.rejected, loss));
}

describe('pair losses', () => {
  it('has a formula in this test for every type', () => {
    expect(types.filter((type) => !formulas[type] && !transport(type))).toEqual([]);
  });

  describe.each(types)('%s', (type) => {
    const smoothing = ['sigmoid', 'robust', 'exo_pair', 'sigmoid_norm', 'simpo', 'cpo'].includes(type)
      ? [0.02, 0.2]
      : [];

    // The aot types have a formula test of their own below.
    if (!transport(type))
      it('is the formula of its paper', () => {
        for (const n of sizes)
          for (const weighted of [false, true])
            for (const more of [{}, ...smoothing.map((labelSmoothing) => ({ labelSmoothing })), { beta: 2 }]) {
              const s = pairs(n, 10 + n, weighted);
              const o = optionsOf(type, more);
              const got = pairLoss(s, o);
              const want = oracle(s, o);
              close([got.loss], [want.loss], 1e-12);
              close(got.rowLosses, want.rowLosses, 1e-12);
            }
      });

    it('has the gradient that finite differences give', () => {
      for (const n of sizes)
        for (const weighted of [false, true])
          for (const more of [{}, ...smoothing.map((labelSmoothing) => ({ labelSmoothing }))])
            expectGradient(pairs(n, 20 + n, weighted), optionsOf(type, more));
    });

    it('is zero for no rows and for no weight', () => {
      for (const s of [pairs(0, 1), { ...pairs(3, 1), weights: new Float64Array(3) }]) {
        const result = pairLoss(s, optionsOf(type));
        expect(result.loss).toBe(0);
        expect([...result.dChosen, ...result.dRejected].every((x) => x === 0)).toBe(true);
      }
    });

    it('scales with the normaliser', () => {
      const s = pairs(5, 3, true);
      const own = s.weights!.reduce((a, x) => a + x, 0);
      const whole = pairLoss(s, optionsOf(type));
      const tokenNormaliser = 4 * s.weights!.reduce((a, x, i) => a + x * s.chosenTokens[i], 0);
      const part = pairLoss(s, optionsOf(type, { normaliser: own * 4, tokenNormaliser }));
      close([part.loss], [whole.loss / 4], 1e-13);
      close(
        part.dChosen,
        whole.dChosen.map((g) => g / 4),
        1e-13,
      );
    });

    it('stays finite at extremes and hands NaN on', () => {
      for (const beta of [0.1, 1])
        for (const [c, r] of [
          [1e4, 0],
          [-1e4, 0],
          [0, 1e4],
          [0, -1e4],
          [-1e4, -1e4],
          [1e4, 1e4],
        ]) {
          const one = (x: number): Float64Array => Float64Array.of(x / beta);
          const s: PairScores = {
            chosen: one(c - 2e4),
            rejected: one(r - 2e4),
            refChosen: one(-2e4),
            refRejected: one(-2e4),
            chosenTokens: Float64Array.of(5),
            rejectedTokens: Float64Array.of(7),
          };
          for (const labelSmoothing of smoothing.length ? [optionsOf(type).labelSmoothing ?? 0, 0.1] : [0]) {
            const { loss, dChosen, dRejected } = pairLoss(s, optionsOf(type, { beta, labelSmoothing }));
            expect(
              [loss, ...dChosen, ...dRejected].every(Number.isFinite),
              `${c} ${r} ${loss} ${dChosen} ${dRejected}`,
            ).toBe(true);
          }
          s.chosen[0] = Number.NaN;
          expect(pairLoss(s, optionsOf(type, { beta })).loss).toBeNaN();
        }
    });

    it('gives a row of weight 2 what it gives the row twice', () => {
      const s = pairs(5, 8);
      const double = Object.fromEntries(
        Object.entries(s).map(([name, x]: [string, Float64Array]) => [name, Float64Array.of(...x, x[3])]),
      ) as unknown as PairScores;
      const weighted = pairLoss({ ...s, weights: Float64Array.of(1, 1, 1, 2, 1) }, optionsOf(type));
      const twice = pairLoss(double, optionsOf(type));
      close([weighted.loss], [twice.loss], 1e-12);
      const folded = twice.dChosen.slice(0, 5);
      folded[3] += twice.dChosen[5];
      close(weighted.dChosen, folded, 1e-12);
    });

    const { coupled, reference, divergence } = pairLossTypes[type];

    if (!coupled)
      it('gives 8 rows what it gives 4 and 4', () => {
        const s = pairs(8, 9, true);
        const whole = pairLoss(s, optionsOf(type));
        const normaliser = s.weights!.reduce((a, x) => a + x, 0);
        const tokenNormaliser = s.weights!.reduce((a, x, i) => a + x * s.chosenTokens[i], 0);
        const halves = [rows(s, 0, 4), rows(s, 4, 8)].map((half) =>
          pairLoss(half, optionsOf(type, { normaliser, tokenNormaliser })),
        );
        close([halves[0].loss + halves[1].loss], [whole.loss], 1e-13);
        close(
          halves.flatMap((half) => [...half.dChosen]),
          whole.dChosen,
          1e-13,
        );
        close(
          halves.flatMap((half) => [...half.dRejected]),
          whole.dRejected,
          1e-13,
        );
      });

    it('asks for a reference only where it needs one', () => {
      const { refChosen: _a, refRejected: _b, ...s } = pairs(3, 4);
      if (reference) expect(() => pairLoss(s, optionsOf(type))).toThrow(/refChosen/);
      else expect(pairLoss(s, optionsOf(type)).loss).toBe(pairLoss(pairs(3, 4), optionsOf(type)).loss);
    });

    it('takes an f-divergence only where it is built on log-ratios', () => {
      for (const kind of ['forward_kl', 'js_divergence', 'alpha_divergence'] as const)
        for (const divergenceAlpha of kind === 'alpha_divergence' ? [0.5, 2, -1] : [0.5]) {
          const o = optionsOf(type, { divergence: kind, divergenceAlpha });
          const s = pairs(7, 30, true);
          if (!divergence) {
            expect(() => pairLoss(s, o)).toThrow(/divergence/);
            continue;
          }
          close(pairLoss(s, o).rowLosses, oracle(s, o).rowLosses, 1e-11);
          expectGradient(s, o);
        }
    });

    if (!transport(type))
      it('multiplies row losses by factors that stay out of the normaliser', () => {
        const s = pairs(6, 12, true);
        const factors = fill(6, (i) => 0.3 + 0.1 * i);
        const plain = pairLoss(s, optionsOf(type));
        close(
          pairLoss({ ...s, factors }, optionsOf(type)).dRejected,
          plain.dRejected.map((g, i) => g * factors[i]),
          1e-13,
        );
        expectGradient({ ...s, factors }, optionsOf(type));
      });
  });

  it('adds up weighted losses', () => {
    const s = pairs(7, 5, true);
    const type = [
      { type: 'sigmoid', weight: 0.8 },
      { type: 'aot', weight: 0.3 },
      { type: 'bco_pair', weight: 0.2 },
      { type: 'sft', weight: 1.5 },
    ] as const;
    const mixed = pairLoss(s, { type: [...type], beta: 0.3 });
    const parts = type.map((term) => pairLoss(s, { type: term.type, beta: 0.3 }));
    const sum = (pick: (result: (typeof parts)[0]) => number): number =>
      parts.reduce((a, part, i) => a + type[i].weight * pick(part), 0);
    close([mixed.loss], [sum((part) => part.loss)], 1e-13);
    close(
      mixed.rowLosses,
      fill(7, (i) => sum((part) => part.rowLosses[i])),
      1e-13,
    );
    close(
      mixed.dChosen,
      fill(7, (i) => sum((part) => part.dChosen[i])),
      1e-13,
    );
    expectGradient(s, { type: [...type], beta: 0.3 });
  });

  it('alpha divergence at 1 is the reverse KL, and exponents are cut', () => {
    const s = pairs(5, 6);
    expect(pairLoss(s, { type: 'sigmoid', beta: 0.3, divergence: 'alpha_divergence', divergenceAlpha: 1 }).loss).toBe(
      pairLoss(s, { type: 'sigmoid', beta: 0.3 }).loss,
    );
    for (const divergence of ['forward_kl', 'js_divergence', 'alpha_divergence'] as const)
      for (const rho of [-1e4, 1e4]) {
        const one = Float64Array.of(1);
        const extreme = {
          chosen: Float64Array.of(rho),
          rejected: Float64Array.of(-rho),
          refChosen: new Float64Array(1),
          refRejected: new Float64Array(1),
          chosenTokens: one,
          rejectedTokens: one,
        };
        const { loss, dChosen, dRejected } = pairLoss(extreme, { type: 'sigmoid', beta: 1, divergence });
        expect([loss, ...dChosen, ...dRejected].every(Number.isFinite)).toBe(true);
      }
  });

  it('aot and aot_unpaired sort over the batch', () => {
    const ascending = (x: Float64Array): Float64Array => x.slice().sort();
    const minus = (a: Float64Array, b: Float64Array): Float64Array => a.map((x, i) => x - b[i]);
    for (const n of sizes)
      for (const labelSmoothing of [0, 0.2]) {
        const s = pairs(n, 40 + n);
        const loss = (up: Float64Array, low: Float64Array): number =>
          minus(ascending(up), ascending(low)).reduce((a, d) => a + L(0.3 * d, labelSmoothing), 0) / n;
        const at = (type: PairLossType): number => pairLoss(s, { type, beta: 0.3, labelSmoothing }).loss;
        close([at('aot')], [loss(minus(s.chosen, s.rejected), minus(s.refChosen!, s.refRejected!))], 1e-13);
        close([at('aot_unpaired')], [loss(minus(s.chosen, s.refChosen!), minus(s.rejected, s.refRejected!))], 1e-13);
      }
  });

  it('carries the running mean of bco_pair', () => {
    const [a, b] = [pairs(4, 1), pairs(6, 2)];
    const first = pairLoss(a, { type: 'bco_pair', beta: 0.3 });
    const second = pairLoss(b, { type: 'bco_pair', beta: 0.3, delta: first.delta });
    const all = [...first.rewardsChosen, ...first.rewardsRejected, ...second.rewardsChosen, ...second.rewardsRejected];
    expect(second.delta!.count).toBe(20);
    close([second.delta!.mean], [all.reduce((x, y) => x + y, 0) / 20], 1e-13);
    const still = pairLoss(b, { type: 'bco_pair', beta: 0.3, delta: { mean: 0, count: 0 }, freezeDelta: true });
    expect(still.delta).toEqual({ mean: 0, count: 0 });
    close(
      [still.rowLosses[0]],
      [
        formulas.bco_pair({
          b: 0.3,
          delta: 0,
          w: still.rewardsChosen[0] / 0.3,
          l: still.rewardsRejected[0] / 0.3,
        } as Formula),
      ],
      1e-12,
    );
  });

  it('reports the metrics of TRL, ties wrong', () => {
    const zero = new Float64Array(3);
    const one = fill(3, () => 1);
    const s = {
      chosen: Float64Array.of(-1, -2, -3),
      rejected: Float64Array.of(-2, -2, -1),
      refChosen: zero,
      refRejected: zero,
      chosenTokens: one,
      rejectedTokens: one,
    };
    const metrics = dpoMetrics(pairLoss(s, { type: 'sigmoid', beta: 0.5 }));
    const want = {
      'rewards/chosen': -1,
      'rewards/rejected': -5 / 6,
      'rewards/accuracies': 1 / 3,
      'rewards/margins': -1 / 6,
      'logps/chosen': -2,
      'logps/rejected': -5 / 3,
    };
    expect(Object.keys(metrics)).toEqual(Object.keys(want));
    close(Object.values(metrics), Object.values(want), 1e-14);
  });

  it('averages rewards per token for a reference-free loss per token', () => {
    const { refChosen: _a, refRejected: _b, ...s } = pairs(2, 4);
    close(
      pairLoss(s, { type: 'simpo', beta: 2 }).rewardsChosen,
      s.chosen.map((x, i) => (2 * x) / s.chosenTokens[i]),
      1e-14,
    );
    close(
      pairLoss(s, { type: 'cpo', beta: 2 }).rewardsChosen,
      s.chosen.map((x) => 2 * x),
      1e-14,
    );
  });

  it('refuses what it cannot mean', () => {
    const s = pairs(3, 1);
    const bad = (change: Partial<PairLossOptions>, message: RegExp): void => {
      expect(() => pairLoss(s, { type: 'sigmoid', beta: 0.1, ...change })).toThrow(message);
    };
    bad({ beta: 0 }, /beta is 0/);
    bad({ beta: Number.NaN }, /beta is NaN/);
    bad({ type: 'dpo' as PairLossType }, /no pair loss "dpo"/);
    bad({ type: [] }, /empty/);
    bad({ labelSmoothing: 0.5 }, /labelSmoothing is 0.5/);
    bad({ type: 'exo_pair' }, /exo_pair/);
    bad({ normaliser: 0 }, /normaliser is 0/);
    expect(() => pairLoss({ ...s, weights: Float64Array.of(1, -1, 1) }, { type: 'sigmoid', beta: 1 })).toThrow(
      /weights\[1\] is -1/,
    );
    expect(() => pairLoss({ ...s, rejected: new Float64Array(2) }, { type: 'sigmoid', beta: 1 })).toThrow(
      /rejected has 2/,
    );
    expect(() => pairLoss({ ...s, factors: new Float64Array(3) }, { type: 'aot', beta: 1 })).toThrow(/factors/);
    expect(() => pairLoss({ ...s, rejected: new Float32Array(3) as never }, { type: 'sigmoid', beta: 1 })).toThrow(
      /Float64Array/,
    );
  });
});
