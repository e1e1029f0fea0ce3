import { describe, expect, it } from 'vitest';
import {
  completionWeights,
  klBaseline,
  packRankings,
  pairLoss,
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
import { close, differences, fill, L, pairs, random, sigma, sizes } from './losses-helpers.js';

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
