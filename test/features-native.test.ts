import { describe, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
import { ballotsOf } from '../lib/features/ballots.js';
import { type BilinearGradient, bilinearLoss } from '../lib/features/bilinear.js';
import { itemTable } from '../lib/features/items.js';
import { project, projectBack } from '../lib/features/linalg.js';
import { deal, dealByItems, LowRankBatches } from '../lib/features/models/batches.js';
import { featureModel } from '../lib/features/models/index.js';
import {
  bilinearLossNative,
  newtonNative,
  projectBackNative,
  projectNative,
  useThreads,
} from '../lib/features/native.js';
import { fitLinear } from '../lib/features/newton.js';
import { type Votes, votesByAnnotator } from '../lib/features/votes.js';
import { addon } from '../lib/native/loader.js';

const random = new Random(11);
const normals = (length: number) => Float64Array.from({ length }, () => random.normal());

/** Pairs (some with margins, some of nobody), rankings, and with `tie` pairs that tie. */
function votesOver(
  items: number,
  annotators: number,
  each: number,
  kinds: { rankings?: boolean; tie?: number },
): Votes {
  const rows: { u: number; items: number[]; stages: number }[] = [];
  for (let u = 0; u < annotators; u++) {
    for (let p = 0; p < each; p++) {
      const n = kinds.rankings && p % 3 === 2 ? 4 : 2;
      const stages = n > 2 ? 2 : kinds.tie && p % 4 === 1 ? 0 : 1;
      rows.push({
        u: p === 0 && u % 3 === 0 ? -1 : u,
        items: Array.from({ length: n }, () => random.below(items)),
        stages,
      });
    }
  }
  const offsets = new Int32Array(rows.length + 1);
  for (const [i, row] of rows.entries()) offsets[i + 1] = offsets[i] + row.items.length;
  return {
    annotators: Array.from({ length: annotators }, (_, u) => `u${u}`),
    annotator: Int32Array.from(rows, (r) => r.u),
    offsets,
    items: Int32Array.from(rows.flatMap((r) => r.items)),
    stages: Int32Array.from(rows, (r) => r.stages),
    weights: Float64Array.from(rows, (_, i) => 0.5 + (i % 3)),
    margins: Float64Array.from(rows, (r, i) => (r.items.length === 2 && i % 5 === 0 ? 0.4 : 0)),
    rows: Int32Array.from(rows, (_, i) => i),
    m: rows.length,
    ...(kinds.tie ? { tie: kinds.tie } : {}),
  };
}

const worst = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Array.from(a).reduce((top, x, i) => Math.max(top, Math.abs(x - b[i])), 0);

describe('the addon beside the loops that it stands in for', () => {
  it('projects and projects back', () => {
    const [n, d, k] = [23, 37, 5];
    const x = Float32Array.from(normals(n * d));
    const [v, g] = [normals(d * k), normals(n * k)];
    const [plain, native] = [project(x, n, d, v, k), new Float64Array(n * k)];
    projectNative(x, n, d, v, k, native);
    expect(worst(native, plain)).toBeLessThan(1e-12);
    const [back, backNative] = [new Float64Array(d * k).fill(0.5), new Float64Array(d * k).fill(0.5)];
    projectBack(x, n, d, g, k, back);
    projectBackNative(x, n, d, g, k, backNative);
    expect(worst(backNative, back)).toBeLessThan(1e-12);
  });

  it.each([
    ['pairs', {}, 3],
    ['pairs and rankings', { rankings: true }, 7],
    ['pairs that tie', { tie: 0.8 }, 9],
    ['the base alone', { rankings: true }, 0],
  ])('loss and gradients of %s', (_, kinds, k) => {
    const [n, N] = [15, 8];
    const votes = votesOver(n, N, 9, kinds);
    const side = { base: normals(n), points: normals(n * k) };
    const users = normals(N * k);
    const empty = (): BilinearGradient => ({
      base: new Float64Array(n).fill(0.25),
      points: new Float64Array(n * k).fill(0.25),
      users: new Float64Array(N * k).fill(0.25),
    });
    const [plain, native] = [empty(), empty()];
    const loss = bilinearLoss(votes, side, users, k, plain);
    expect(bilinearLossNative(votes, side, users, k, native)).toBeCloseTo(loss, 10);
    expect(bilinearLossNative(votes, side, users, k)).toBeCloseTo(loss, 10);
    for (const key of ['base', 'points', 'users'] as const) expect(worst(native[key], plain[key])).toBeLessThan(1e-11);
  });

  it.each([
    ['pairs', {}],
    ['pairs and rankings', { rankings: true }],
    ['pairs that tie', { tie: 0.8 }],
  ])('coordinates and posteriors of %s', (_, kinds) => {
    const [n, N, k] = [15, 6, 4];
    const votes = votesOver(n, N, 12, kinds);
    const side = { base: normals(n), points: normals(n * k) };
    const z = new Float64Array(N * k);
    const factors = new Float64Array(N * k * k);
    newtonNative(votes, side, z, k, 0.6, 1e-16, factors);
    const by = votesByAnnotator(votes);
    for (let u = 0; u < N; u++) {
      const which = by.votes.subarray(by.offsets[u], by.offsets[u + 1]);
      const fit = fitLinear({ votes, which, ...side, k, l2: 0.6 }, undefined, 1e-16);
      expect(worst(z.subarray(u * k, (u + 1) * k), fit.z)).toBeLessThan(1e-7);
      for (let a = 0; a < k; a++) {
        for (let b = 0; b <= a; b++) expect(factors[(u * k + a) * k + b]).toBeCloseTo(fit.factor[a * k + b], 6);
      }
    }
  });

  it('groups votes by voter, nobody last', () => {
    const votes = votesOver(15, 5, 6, { rankings: true });
    const ballots = ballotsOf(votes);
    expect(ballots.voters).toBe(6);
    expect([...ballots.order].sort((a, b) => a - b)).toEqual([...Array(votes.m).keys()]);
    for (let u = 0; u < 6; u++) {
      for (let i = ballots.voterStart[u]; i < ballots.voterStart[u + 1]; i++) {
        expect(votes.annotator[ballots.order[i]]).toBe(u === 5 ? -1 : u);
      }
    }
    expect(ballots.nameless).toBe(2);
  });
});

describe('the addon refuses', () => {
  const ballots = { voterStart: Int32Array.of(0, 1), places: Int32Array.of(0, 1), tie: 0 };
  const good = { ballots, points: new Float64Array(16), users: new Float64Array(8), stride: 8, threads: 1 };
  it.each([
    [
      'an item that is not there',
      { ballots: { ...ballots, places: Int32Array.of(0, 2) } },
      /places\[1\] is 2; there are 2/,
    ],
    ['a place below the first', { ballots: { ...ballots, places: Int32Array.of(-1, 0) } }, /places\[0\] is -1/],
    ['voters whose votes end elsewhere', { ballots: { ...ballots, voterStart: Int32Array.of(0, 2) } }, /voterStart/],
    ['too few users', { users: new Float64Array(4) }, /users has 4 elements, expected 8/],
    ['a voter row that is not there', { voterRows: Int32Array.of(1) }, /voterRows\[0\] is 1/],
    ['a stride that is no line', { stride: 7 }, /stride is 7/],
    ['more stages than places', { ballots: { ...ballots, stages: Int32Array.of(3) } }, /stages\[0\] is 3 of 2 places/],
    ['users of another type', { users: new Float32Array(8) }, /users must be a typed array/],
    ['a gradient without the other', { dPoints: new Float64Array(16) }, /dUsers/],
  ])('%s', (_, part, message) => {
    expect(() => addon().bilinear.loss({ ...good, ...part } as never)).toThrow(message);
  });

  it('rows of features that are not there', () => {
    const call = { x: new Float32Array(6), d: 3, k: 1, v: new Float64Array(3), points: new Float64Array(8), stride: 8 };
    expect(() => addon().bilinear.project({ ...call, rows: Int32Array.of(2), threads: 1 })).toThrow(/rows\[0\] is 2/);
    expect(() => addon().bilinear.project({ ...call, threads: 1 })).toThrow(/points has 8 elements, expected 16/);
  });
});

describe('mini-batches', () => {
  it('deal every vote once, in batches of no more than asked', () => {
    const votes = votesOver(40, 30, 25, {});
    const ballots = ballotsOf(votes);
    for (const dealt of [deal(votes.m, 64, new Random(1)), dealByItems(ballots, 40, 64, new Random(1))]) {
      const counts = new Int32Array(dealt.starts.length);
      for (const c of dealt.of) counts[c]++;
      expect(dealt.batches.reduce((sum, [from, to]) => sum + to - from, 0)).toBe(votes.m);
      for (const [from, to] of dealt.batches) expect(to - from).toBeLessThanOrEqual(64);
      const ranges = [...dealt.batches].sort((a, b) => a[0] - b[0]);
      for (const [i, range] of ranges.entries()) expect(range[0]).toBe(i ? ranges[i - 1][1] : 0);
    }
  });

  it.each(['blocks', 'random'] as const)('come near the optimum with batches of %s', async (order) => {
    const d = 12;
    const table = itemTable(
      'items',
      Array.from({ length: 300 }, (_, i) => `${i}`),
      Float32Array.from(normals(300 * d)),
      d,
    );
    const votes = votesOver(300, 60, 40, { rankings: true });
    // Choices along one direction, so that there is something to find.
    for (let v = 0; v < votes.m; v++) {
      const at = votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]);
      const sign = votes.annotator[v] % 2 ? -1 : 1;
      at.sort((a, b) => sign * (table.features[b * d] - table.features[a * d]));
    }
    const model = featureModel('low-rank', d, 2);
    const options = { model: 'low-rank', rank: 2, l2: 1, seed: 0 } as const;
    const exact = await model.fit(table, votes, options);
    const batch = { batch: 256, epochs: 15, learningRate: 0.03, order };
    const { report, parameters } = await model.fit(table, votes, { ...options, batch });
    expect(report.objective).toBeLessThan(1.02 * exact.report.objective);
    if (order === 'random') return;
    useThreads(1);
    const again = await model.fit(table, votes, { ...options, batch });
    expect(again.parameters).toEqual(parameters);
  });

  it('leave voters alone whom a batch does not have', () => {
    const votes = votesOver(20, 4, 10, {});
    const table = { features: Float32Array.from(normals(20 * 3)), n: 20, d: 3 };
    const options = { batch: 8, epochs: 1, learningRate: 0.1, order: 'random', l2: 1, seed: 0 } as const;
    const batches = new LowRankBatches(table, votes, 2, options, normals(6));
    const before = batches.users.slice();
    const { voterStart, places } = ballotsOf(votes);
    const which = Int32Array.of(voterStart[1], voterStart[1] + 1);
    const pairs = places.slice(2 * which[0], 2 * which[1] + 2);
    batches.step(which, Int32Array.of(1, 1), pairs, 0.1);
    const { stride } = batches;
    const row = (list: Float32Array, u: number) => [...list.subarray(u * stride, (u + 1) * stride)];
    expect(row(batches.users, 1)).not.toEqual(row(before, 1));
    expect(row(batches.users, 1)[2]).toBe(1);
    for (const u of [0, 2, 3, 4]) expect(row(batches.users, u)).toEqual(row(before, u));
  });
});
