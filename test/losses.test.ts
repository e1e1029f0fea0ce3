import { describe, expect, it } from 'vitest';
import {
  completionWeights,
  type Divergence,
  dpoMetrics,
  klBaseline,
  type PairLossOptions,
  type PairLossType,
  type PairScores,
  packRankings,
  pairLoss,
  pairLossTypes,
  type RankingLossType,
  type RankingScores,
  rankingLoss,
  rankingMetrics,
  rewardLoss,
  rewardMetrics,
  sftLoss,
  sharedLengths,
  spreadGradient,
  sumTokens,
  unpairedLoss,
  unpairedMetrics,
  wpoWeights,
} from '../lib/losses/index.js';

function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

const fill = (n: number, f: (i: number) => number): Float64Array => Float64Array.from({ length: n }, (_, i) => f(i));

function pairs(n: number, seed: number, weighted = false): PairScores {
  const u = random(seed);
  const chosenTokens = fill(n, () => 1 + Math.floor(u() * 9));
  const rejectedTokens = fill(n, () => 1 + Math.floor(u() * 9));
  const chosen = chosenTokens.map((t) => -t * (0.3 + 2 * u()));
  const rejected = rejectedTokens.map((t) => -t * (0.3 + 2 * u()));
  const near = (x: number): number => x + 6 * (u() - 0.5);
  const scores: PairScores = {
    chosen,
    rejected,
    refChosen: chosen.map(near),
    refRejected: rejected.map(near),
    chosenTokens,
    rejectedTokens,
  };
  if (weighted) scores.weights = fill(n, (i) => (i === 2 ? 0 : 0.2 + 3 * u()));
  return scores;
}

function rows(scores: PairScores, from: number, to: number): PairScores {
  return Object.fromEntries(
    Object.entries(scores).map(([name, x]: [string, Float64Array]) => [name, x.slice(from, to)]),
  ) as unknown as PairScores;
}

/** Central differences of `loss` with respect to `x`, which is changed in place. */
function differences(x: Float64Array, loss: () => number, h = 1e-4): Float64Array {
  return x.map((value, i) => {
    x[i] = value + h;
    const up = loss();
    x[i] = value - h;
    const down = loss();
    x[i] = value;
    return (up - down) / (2 * h);
  });
}

/** Relative to the largest element, and absolutely where all are tiny. */
function close(actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance = 1e-6): void {
  expect(actual.length).toBe(expected.length);
  const scale = Math.max(1e-2, ...Array.from(expected, Math.abs));
  for (let i = 0; i < expected.length; i++)
    expect(Math.abs(actual[i] - expected[i]) / scale, `element ${i}: ${actual[i]} against ${expected[i]}`).toBeLessThan(
      tolerance,
    );
}

const types = Object.keys(pairLossTypes) as PairLossType[];
const transport = (type: PairLossType): boolean => type === 'aot' || type === 'aot_unpaired';
const sizes = [1, 2, 3, 7, 8];

function optionsOf(type: PairLossType, more: Partial<PairLossOptions> = {}): PairLossOptions {
  return { type, beta: 0.3, ...(type === 'exo_pair' ? { labelSmoothing: 1e-3 } : {}), ...more };
}

// The formulas once more, each from its paper, with textbook arithmetic.
const sigma = (x: number): number => 1 / (1 + Math.exp(-x));
const L = (x: number, e: number): number => -(1 - e) * Math.log(sigma(x)) - (e ? e * Math.log(sigma(-x)) : 0);

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

describe('token sums', () => {
  const offsets = Int32Array.of(0, 3, 3, 8, 10);

  it('length-desensitised sums and their way back', () => {
    const u = random(7);
    const values = fill(10, () => -u());
    const shared = Float64Array.of(2, 0, 2, 5);
    for (const ld of [undefined, { alpha: 0.4, shared }, { alpha: 0, shared }]) {
      const sums = sumTokens(values, offsets, ld);
      if (ld?.alpha === 0.4) {
        close([sums[0]], [values[0] + values[1] + 0.4 * values[2]], 1e-14);
        close([sums[3]], [values[8] + values[9]], 1e-14);
      }
      const d = Float64Array.of(1, 2, -3, 0.5);
      const loss = (): number => sumTokens(values, offsets, ld).reduce((a, x, i) => a + d[i] * x, 0);
      close(spreadGradient(d, offsets, ld, new Float64Array(10)), differences(values, loss), 1e-9);
    }
    expect(sharedLengths([3, 5], [4, 2])).toEqual(Float64Array.of(3, 2));
    expect(() => sumTokens(values, Int32Array.of(0, 3))).toThrow(/offsets/);
  });

  it("WPO's weights", () => {
    const w = completionWeights(
      Float64Array.of(-1, -2, -0.5),
      Float64Array.of(0.5, 0.25, 0.1),
      Int32Array.of(0, 2, 2, 3),
    );
    const a = Math.exp((-1 - Math.log(0.5) - 2 - Math.log(0.25)) / 2);
    close(w, [a, 1, Math.exp(-0.5 - Math.log(0.1))], 1e-14);
    close(wpoWeights(w.slice(0, 1), w.slice(2)), [w[0] * w[2]], 1e-14);
  });
});

describe('reward loss', () => {
  it('is Bradley–Terry with margin and centring, with its gradient', () => {
    for (const n of sizes)
      for (const centring of [0, 0.01])
        for (const full of [false, true]) {
          const u = random(50 + n);
          const draw = (): Float64Array => fill(n, () => 4 * (u() - 0.5));
          const s = {
            chosen: draw(),
            rejected: draw(),
            ...(full ? { margins: draw(), weights: fill(n, () => u()) } : {}),
          };
          const got = rewardLoss(s, { centring });
          const w = s.weights ?? fill(n, () => 1);
          const row = fill(
            n,
            (i) =>
              L(s.chosen[i] - s.rejected[i] - (s.margins?.[i] ?? 0), 0) + centring * (s.chosen[i] + s.rejected[i]) ** 2,
          );
          close(got.rowLosses, row, 1e-12);
          close([got.loss], [row.reduce((a, x, i) => a + w[i] * x, 0) / w.reduce((a, x) => a + x, 0)], 1e-12);
          close(
            got.dChosen,
            differences(s.chosen, () => rewardLoss(s, { centring }).loss),
          );
          close(
            got.dRejected,
            differences(s.rejected, () => rewardLoss(s, { centring }).loss),
          );
          close(
            rewardLoss(s, { centring, normaliser: 3 }).dChosen,
            got.dChosen.map((g) => (g * w.reduce((a, x) => a + x, 0)) / 3),
            1e-12,
          );
        }
  });

  it('is zero for no rows, finite at extremes, NaN for NaN', () => {
    const none = new Float64Array();
    expect(rewardLoss({ chosen: none, rejected: none }).loss).toBe(0);
    const { loss } = rewardLoss({ chosen: Float64Array.of(-1e4, 1e4), rejected: Float64Array.of(1e4, -1e4) });
    expect(loss).toBe(1e4);
    expect(rewardLoss({ chosen: Float64Array.of(Number.NaN), rejected: Float64Array.of(0) }).loss).toBeNaN();
    expect(() => rewardLoss({ chosen: none, rejected: none }, { centring: -1 })).toThrow(/centring/);
  });

  it('reports accuracy with ties wrong', () => {
    const metrics = rewardMetrics({ chosen: Float64Array.of(1, 2), rejected: Float64Array.of(1, -3) });
    expect(metrics).toEqual({ accuracy: 0.5, margin: 2.5, min_reward: -3, mean_reward: 0.25, max_reward: 2 });
  });
});

function groups(lists: { size: number; ranking: number[] }[], seed: number): RankingScores {
  const u = random(seed);
  const offsets = new Int32Array(lists.length + 1);
  lists.forEach(({ size }, i) => {
    offsets[i + 1] = offsets[i] + size;
  });
  const total = offsets[lists.length];
  return {
    scores: fill(total, () => -20 * u()),
    refScores: fill(total, () => -20 * u()),
    offsets,
    ...packRankings(lists.map((list) => list.ranking)),
    weights: fill(lists.length, () => 0.1 + u()),
  };
}

const mixedGroups = [
  { size: 5, ranking: [3, 0, 4, 1, 2] },
  { size: 2, ranking: [1, 0] },
  { size: 4, ranking: [2] },
  { size: 1, ranking: [0] },
  { size: 6, ranking: [5, 1, 0] },
  { size: 3, ranking: [] },
  { size: 3, ranking: [1, 2] },
];

describe('ranking losses', () => {
  const logsumexp = (x: number[]): number => Math.log(x.reduce((a, v) => a + Math.exp(v), 0));

  function direct(s: RankingScores, beta: number, terms: (ranked: number) => number): number[] {
    return mixedGroups.map(({ ranking }, i) => {
      const r = [...s.scores.slice(s.offsets[i], s.offsets[i + 1])].map(
        (x, j) => beta * (x - s.refScores![s.offsets[i] + j]),
      );
      const left = new Set(r.keys());
      let loss = 0;
      for (const item of ranking.slice(0, terms(ranking.length))) {
        loss += logsumexp([...left].map((j) => r[j])) - r[item];
        left.delete(item);
      }
      return loss;
    });
  }

  it('is the Plackett–Luce likelihood of full and top-m rankings', () => {
    const s = groups(mixedGroups, 3);
    close(
      rankingLoss(s, { type: 'plackett_luce', beta: 0.2 }).rowLosses,
      direct(s, 0.2, (m) => m),
      1e-12,
    );
    close(
      rankingLoss(s, { type: 'best', beta: 0.2 }).rowLosses,
      direct(s, 0.2, () => 1),
      1e-12,
    );
  });

  it('sums to one over all rankings', () => {
    const orders = [
      [0, 1, 2],
      [0, 2, 1],
      [1, 0, 2],
      [1, 2, 0],
      [2, 0, 1],
      [2, 1, 0],
    ];
    const p = (list: number[][]): number =>
      list.reduce(
        (a, ranking) =>
          a +
          Math.exp(
            -rankingLoss(
              { scores: Float64Array.of(1, -2, 0.5), offsets: Int32Array.of(0, 3), ...packRankings([ranking]) },
              { type: 'plackett_luce', beta: 1 },
            ).loss,
          ),
        0,
      );
    expect(p(orders)).toBeCloseTo(1, 12);
    expect(
      p([
        [0, 1],
        [0, 2],
        [1, 0],
        [1, 2],
        [2, 0],
        [2, 1],
      ]),
    ).toBeCloseTo(1, 12);
    expect(p([[0], [1], [2]])).toBeCloseTo(1, 12);
  });

  it('s_dpo is −log σ(−log Σ exp(negative − best))', () => {
    const s = groups([{ size: 4, ranking: [2, 0, 1, 3] }], 9);
    const r = s.scores.map((x, j) => 0.2 * (x - s.refScores![j]));
    const want = L(-logsumexp([0, 1, 3].map((j) => r[j] - r[2])), 0);
    close([rankingLoss(s, { type: 's_dpo', beta: 0.2 }).loss], [want], 1e-12);
  });

  it('lipo is the LambdaLoss', () => {
    const s = { scores: Float64Array.of(0.5, 2, 1), offsets: Int32Array.of(0, 3), ...packRankings([[0, 1]]) };
    const gain = [3, 1, 0];
    const discount = [1 / Math.log(4), 1 / Math.log(2), 1 / Math.log(3)];
    let want = 0;
    for (const [i, j] of [
      [0, 1],
      [0, 2],
      [1, 2],
    ])
      want +=
        (gain[i] - gain[j]) * Math.abs(discount[i] - discount[j]) * Math.log(1 + Math.exp(s.scores[j] - s.scores[i]));
    close([rankingLoss(s, { type: 'lipo', beta: 1 }).loss], [want], 1e-12);
  });

  it.each(['plackett_luce', 'best', 's_dpo', 'lipo'] as RankingLossType[])('%s: gradient, packs, extremes', (type) => {
    for (const weighted of [true, false]) {
      const s = groups(mixedGroups, 4);
      if (!weighted) delete s.weights;
      const o = { type, beta: 0.2 };
      const whole = rankingLoss(s, o);
      close(
        whole.dScores,
        differences(s.scores, () => rankingLoss(s, o).loss),
      );

      const normaliser = s.weights ? s.weights.reduce((a, x) => a + x, 0) : mixedGroups.length;
      const parts = [
        [0, 3],
        [3, 7],
      ].map(([a, b]) => {
        const [from, to] = [s.offsets[a], s.offsets[b]];
        return rankingLoss(
          {
            scores: s.scores.slice(from, to),
            refScores: s.refScores!.slice(from, to),
            offsets: s.offsets.slice(a, b + 1).map((x) => x - from),
            ...packRankings(mixedGroups.slice(a, b).map((group) => group.ranking)),
            weights: s.weights?.slice(a, b),
          },
          { ...o, normaliser },
        );
      });
      close([parts[0].loss + parts[1].loss], [whole.loss], 1e-13);
      close(
        parts.flatMap((part) => [...part.dScores]),
        whole.dScores,
        1e-13,
      );
    }
    const extreme = {
      scores: Float64Array.of(-1e4, 1e4, 0),
      offsets: Int32Array.of(0, 3),
      ...packRankings([[0, 1, 2]]),
    };
    const { loss, dScores } = rankingLoss(extreme, { type, beta: 1 });
    expect([loss, ...dScores].every(Number.isFinite)).toBe(true);
    extreme.scores[2] = Number.NaN;
    expect(rankingLoss(extreme, { type, beta: 1 }).loss).toBeNaN();
    expect(
      rankingLoss({ scores: new Float64Array(), offsets: Int32Array.of(0), ...packRankings([]) }, { type, beta: 1 })
        .loss,
    ).toBe(0);
  });

  it('with two responses is sigmoid DPO', () => {
    const s = pairs(7, 60, true);
    const zip = (a: Float64Array, b: Float64Array): Float64Array => fill(14, (i) => (i % 2 ? a : b)[i >> 1]);
    const ranked = rankingLoss(
      {
        scores: zip(s.chosen, s.rejected),
        refScores: zip(s.refChosen!, s.refRejected!),
        offsets: Int32Array.from({ length: 8 }, (_, i) => 2 * i),
        ...packRankings(Array.from({ length: 7 }, () => [1, 0])),
        weights: s.weights,
      },
      { type: 'plackett_luce', beta: 0.3 },
    );
    const dpo = pairLoss(s, { type: 'sigmoid', beta: 0.3 });
    close([ranked.loss], [dpo.loss], 1e-12);
    close(ranked.dScores, zip(dpo.dChosen, dpo.dRejected), 1e-12);
  });

  it('counts ordered pairs and best choices', () => {
    const s = {
      scores: Float64Array.of(3, 1, 1, 0, 2),
      offsets: Int32Array.of(0, 3, 5),
      ...packRankings([
        [0, 2],
        [0, 1],
      ]),
    };
    const metrics = rankingMetrics(s, rankingLoss(s, { type: 'plackett_luce', beta: 1 }));
    expect(metrics).toEqual({ 'rewards/accuracies': 2 / 4, 'rewards/top1': 1 / 2 });
  });

  it('refuses rankings that are none', () => {
    const at =
      (ranking: number[], offsets = Int32Array.of(0, 3)): (() => void) =>
      () =>
        void rankingLoss(
          { scores: new Float64Array(3), offsets, ...packRankings([ranking]) },
          { type: 'best', beta: 1 },
        );
    expect(at([0, 3])).toThrow(/group 0: the ranking names response 3/);
    expect(at([0, -1])).toThrow(/response -1/);
    expect(at([1, 1])).toThrow(/response 1 twice/);
    expect(at([0], Int32Array.of(0, 4))).toThrow(/offsets must run from 0 to 3/);
    expect(at([0], Int32Array.of(0, 5, 3))).toThrow(/rankingOffsets|falls/);
    expect(() => rankingLoss(groups(mixedGroups, 1), { type: 'listmle' as RankingLossType, beta: 1 })).toThrow(
      /no ranking loss/,
    );
  });
});

describe('unpaired losses', () => {
  function completions(n: number, seed: number, weighted: boolean): Parameters<typeof unpairedLoss>[0] {
    const u = random(seed);
    const logps = fill(n, () => -30 * u());
    return {
      logps,
      refLogps: logps.map((x) => x + 8 * (u() - 0.4)),
      labels: Uint8Array.from({ length: n }, () => (u() < 0.5 ? 1 : 0)),
      ...(weighted ? { weights: fill(n, () => 0.1 + u()) } : {}),
    };
  }

  const own: Record<string, (r: number, good: boolean, base: number) => number> = {
    kto: (r, good, kl) => (good ? 1.5 * (1 - sigma(0.2 * (r - kl))) : 0.7 * (1 - sigma(0.2 * (kl - r)))),
    bco: (r, good, delta) =>
      good ? -1.5 * Math.log(sigma(0.2 * r - delta)) : -0.7 * Math.log(sigma(-(0.2 * r - delta))),
    apo_zero_unpaired: (r, good) => (good ? 1.5 * (1 - sigma(0.2 * r)) : 0.7 * sigma(0.2 * r)),
  };

  it.each(['kto', 'bco', 'apo_zero_unpaired'] as const)('%s: formula, gradient, packs, extremes', (type) => {
    for (const n of [...sizes, 0])
      for (const weighted of [false, true]) {
        const s = completions(n, 70 + n, weighted);
        const o = { type, beta: 0.2, desirableWeight: 1.5, undesirableWeight: 0.7 };
        const got = unpairedLoss(s, o);
        const held = { ...o, kl: got.kl, delta: got.delta, freezeDelta: true };
        const w = s.weights ?? fill(n, () => 1);
        const total = w.reduce((a, x) => a + x, 0);
        const rho = s.logps.map((x, i) => x - s.refLogps[i]);
        const mean = total ? rho.reduce((a, x, i) => a + w[i] * x, 0) / total : 0;
        const base = type === 'kto' ? Math.max(0, mean) : 0.2 * mean;
        const row = rho.map((r, i) => own[type](r, s.labels[i] === 1, base));
        close(got.rowLosses, row, 1e-12);
        close([got.loss], [total ? row.reduce((a, x, i) => a + w[i] * x, 0) / total : 0], 1e-12);
        close(
          got.dLogps,
          differences(s.logps, () => unpairedLoss(s, held).loss),
        );
        if (n !== 8) continue;
        const parts = [
          [0, 4],
          [4, 8],
        ].map(([a, b]) =>
          unpairedLoss(
            {
              logps: s.logps.slice(a, b),
              refLogps: s.refLogps.slice(a, b),
              labels: s.labels.slice(a, b),
              weights: s.weights?.slice(a, b),
            },
            { ...held, normaliser: total },
          ),
        );
        close(
          parts.flatMap((part) => [...part.dLogps]),
          got.dLogps,
          1e-13,
        );
      }
    const labels = Uint8Array.of(1, 0, 1, 0);
    const s = { logps: Float64Array.of(-1e4, -1e4, 1e4, 1e4), refLogps: new Float64Array(4), labels };
    const { loss, dLogps } = unpairedLoss(s, { type, beta: 1 });
    expect([loss, ...dLogps].every(Number.isFinite)).toBe(true);
    s.logps[1] = Number.NaN;
    expect(unpairedLoss(s, { type, beta: 1 }).loss).toBeNaN();
  });

  it('clamps the KL baseline at 0 and keeps NaN', () => {
    expect(klBaseline(Float64Array.of(-3, -1), Float64Array.of(-1, -1))).toBe(0);
    expect(klBaseline(Float64Array.of(3, 1), Float64Array.of(-1, -1))).toBe(3);
    expect(klBaseline(Float64Array.of(Number.NaN), Float64Array.of(0))).toBeNaN();
  });

  it("reports KTO's metrics", () => {
    const s = { logps: Float64Array.of(-1, -2, -3), refLogps: new Float64Array(3), labels: Uint8Array.of(1, 0, 1) };
    expect(unpairedMetrics(unpairedLoss(s, { type: 'kto', beta: 1 }))).toEqual({
      kl: 0,
      'rewards/chosen': -2,
      'logps/chosen': -2,
      'rewards/rejected': -2,
      'logps/rejected': -2,
      'rewards/margins': 0,
    });
  });
});

describe('sft', () => {
  it('is the mean over tokens, also in parts', () => {
    const s = {
      logps: Float64Array.of(-4, -6, -1),
      tokens: Float64Array.of(2, 3, 1),
      weights: Float64Array.of(1, 2, 0.5),
    };
    const { loss, dLogps, rowLosses } = sftLoss(s);
    close([loss], [(4 + 12 + 0.5) / (2 + 6 + 0.5)], 1e-14);
    close(rowLosses, [2, 2, 1], 1e-14);
    close(
      dLogps,
      differences(s.logps, () => sftLoss(s).loss),
    );
    close(
      sftLoss(s, { normaliser: 17 }).dLogps,
      dLogps.map((g) => g / 2),
      1e-14,
    );
    expect(sftLoss({ logps: new Float64Array(), tokens: new Float64Array() }).loss).toBe(0);
  });
});
