import { describe, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
import { aggregateRewards, aggregateScorer } from '../lib/features/everyone.js';
import { itemTable } from '../lib/features/items.js';
import { sigmoid } from '../lib/features/likelihood.js';
import { featureModel } from '../lib/features/models/index.js';
import { linearObjective } from '../lib/features/newton.js';
import { bestOf, confidenceRadius, lowerConfidence, pessimisticPolicy } from '../lib/features/pessimism.js';
import { Population } from '../lib/features/population.js';
import { expectedInformation, nextQuestions, type Posterior } from '../lib/features/posterior.js';
import { isTie, likeliestNu, withTies } from '../lib/features/ties.js';
import { subVotes, type Votes, votesByAnnotator } from '../lib/features/votes.js';
import { tieLoss } from '../lib/losses/ties.js';

const random = new Random(21);
const [n, d, N, k, l2] = [14, 6, 5, 3, 0.8];
const table = itemTable(
  'items',
  Array.from({ length: n }, (_, i) => `i${i}`),
  Float32Array.from({ length: n * d }, () => random.normal()),
  d,
);

function someVotes(each: number, tied = 0): Votes {
  const m = N * each;
  return {
    annotators: Array.from({ length: N }, (_, u) => `u${u}`),
    annotator: Int32Array.from({ length: m }, (_, v) => v % N),
    offsets: Int32Array.from({ length: m + 1 }, (_, v) => 2 * v),
    items: Int32Array.from({ length: 2 * m }, () => random.below(n)),
    stages: Int32Array.from({ length: m }, () => (random.uniform() < tied ? 0 : 1)),
    weights: Float64Array.from({ length: m }, (_, v) => 1 + (v % 2)),
    margins: new Float64Array(m),
    rows: Int32Array.from({ length: m }, (_, v) => v),
    m,
  };
}
const votes = someVotes(8);

async function trained(given = votes) {
  const model = featureModel('low-rank', d, k);
  const { parameters } = await model.fit(table, given, { model: 'low-rank', rank: k, l2, seed: 0 });
  return new Population(model, k, l2, given.annotators, parameters).withPosteriors(table, given);
}
const population = await trained();
const side = population.model.items(table, population.parameters.shared);
const point = (i: number) => side.points.subarray(i * k, (i + 1) * k);
const difference = (a: number, b: number) => point(a).map((x, c) => x - point(b)[c]);

/** Every combination of an axis, as a plain sum over a grid. */
function grid(integrand: (z: number[]) => number, reach = 6, steps = 60): number {
  const axis = Array.from({ length: steps }, (_, i) => (2 * reach * (i + 0.5)) / steps - reach);
  let sum = 0;
  for (const a of axis) sum += integrand([a]);
  return (sum * 2 * reach) / steps;
}

describe('posteriors', () => {
  it('are the inverse Hessian at the mode', () => {
    const by = votesByAnnotator(votes);
    for (let u = 0; u < N; u++) {
      const hessian = new Float64Array(k * k);
      const which = by.votes.subarray(by.offsets[u], by.offsets[u + 1]);
      const gradient = new Float64Array(k);
      linearObjective({ votes, which, ...side, k, l2 }, population.coordinates(u), gradient, hessian);
      for (const g of gradient) expect(Math.abs(g)).toBeLessThan(1e-5);
      const delta = difference(u, u + 3);
      const posterior = population.posterior(u) as Posterior;
      // H x = δ by the factor gives back δᵀ x = sd².
      const half = posterior.half(delta);
      const x = new Float64Array(k);
      for (let i = k - 1; i >= 0; i--) {
        x[i] = half[i];
        for (let p = i + 1; p < k; p++) x[i] -= posterior.factor[p * k + i] * x[p];
        x[i] /= posterior.factor[i * k + i];
      }
      for (let i = 0; i < k; i++) {
        let sum = 0;
        for (let j = 0; j < k; j++) sum += (i >= j ? hessian[i * k + j] : hessian[j * k + i]) * x[j];
        expect(sum).toBeCloseTo(delta[i], 8);
      }
      expect(posterior.sd(delta) ** 2).toBeCloseTo(
        x.reduce((sum, value, i) => sum + value * delta[i], 0),
        10,
      );
    }
  });

  it('take one more observation by an update of the factor', () => {
    const posterior = population.posterior(1) as Posterior;
    const delta = difference(2, 9);
    const updated = posterior.with(delta, 0.37);
    const product = (p: Posterior, i: number, j: number) => {
      let sum = 0;
      for (let q = 0; q < k; q++) sum += p.factor[i * k + q] * p.factor[j * k + q];
      return sum;
    };
    for (let i = 0; i < k; i++) {
      for (let j = 0; j < k; j++) {
        expect(product(updated, i, j)).toBeCloseTo(product(posterior, i, j) + 0.37 * delta[i] * delta[j], 10);
      }
    }
    expect(updated.sd(delta)).toBeLessThan(posterior.sd(delta));
  });

  it('of nobody are the prior', () => {
    const delta = difference(0, 1);
    const size = Math.sqrt(delta.reduce((sum, x) => sum + x * x, 0));
    expect((population.posterior(-1) as Posterior).sd(delta)).toBeCloseTo(size / Math.sqrt(l2), 12);
  });

  it('are the same bits however many voters are taken at a time', async () => {
    const model = featureModel('local', d, 1);
    const given = { ...votes, annotator: votes.annotator.map((u, v) => (v % 11 === 3 ? -1 : u)) };
    const { parameters } = await model.fit(table, given, { model: 'local', rank: 1, l2, seed: 0 });
    const of = new Population(model, 1, l2, given.annotators, parameters);
    const whole = of.withPosteriors(table, given).parameters.posterior!;
    for (const atOnce of [1, 2, 4]) expect(of.withPosteriors(table, given, atOnce).parameters.posterior).toEqual(whole);
  });

  it('of a voter alone (local) are kept too, and a new voter is fitted as the others were', async () => {
    const model = featureModel('local', d, 1);
    const { parameters } = await model.fit(table, votes, { model: 'local', rank: 1, l2, seed: 0 });
    const local = new Population(model, 1, l2, votes.annotators, parameters).withPosteriors(table, votes);
    const by = votesByAnnotator(votes);
    const side = model.items(table, parameters.shared);
    for (let u = 0; u < N; u++) {
      const which = by.votes.subarray(by.offsets[u], by.offsets[u + 1]);
      const [gradient, hessian] = [new Float64Array(d), new Float64Array(d * d)];
      linearObjective({ votes, which, ...side, k: d, l2 }, local.own(u), gradient, hessian);
      const { factor } = local.posterior(u) as Posterior;
      for (let i = 0; i < d; i++)
        for (let j = 0; j <= i; j++) {
          let sum = 0;
          for (let q = 0; q < d; q++) sum += factor[i * d + q] * factor[j * d + q];
          expect(sum).toBeCloseTo(hessian[i * d + j], 5);
        }
      const again = local.fitOwn(table, votes, which);
      again.own.forEach((w, i) => {
        expect(w).toBeCloseTo(local.own(u)[i], 5);
      });
      expect(again.factor).toHaveLength(d * d);
    }
  });

  it('are kept by the file, and made for a new voter', async () => {
    const few = { ...votes, annotators: ['new'], annotator: new Int32Array(votes.m) };
    const { own, factor } = population.fitOwn(table, few, Int32Array.of(0, 1, 2));
    const wider = population.with('new', own, factor);
    expect(wider.posterior(N)?.factor).toEqual(factor);
    expect(wider.posterior(2)?.factor).toEqual(population.posterior(2)?.factor);
  });
});

describe('questions', () => {
  it('information is the mutual information of answer and difference', () => {
    const entropy = (p: number) => -p * Math.log(p) - (1 - p) * Math.log(1 - p);
    for (const [mean, sd] of [
      [0, 1],
      [1.5, 0.7],
      [-2, 2],
      [0.3, 0.01],
    ]) {
      const density = (t: number) => Math.exp((-t * t) / 2) / Math.sqrt(2 * Math.PI);
      const p = grid(([t]) => density(t) * sigmoid(mean + sd * t), 9, 4000);
      const inner = grid(([t]) => density(t) * entropy(sigmoid(mean + sd * t)), 9, 4000);
      expect(expectedInformation(mean, sd)).toBeCloseTo(entropy(p) - inner, 3);
    }
    expect(expectedInformation(0.4, 0)).toBeCloseTo(0, 12);
  });

  it('come best first, and none twice', () => {
    const questions = nextQuestions(population, table, -1, 6);
    expect(new Set(questions.map(({ items }) => items.join())).size).toBe(6);
    const all = nextQuestions(population, table, -1, 1, undefined, 5)[0];
    expect(all).toEqual(questions[0]);
    const best = Math.max(
      ...Array.from({ length: n }, (_, a) => a).flatMap((a) =>
        Array.from({ length: a }, (_, b) =>
          expectedInformation(
            side.base[b] - side.base[a],
            (population.posterior(-1) as Posterior).sd(difference(b, a)),
          ),
        ),
      ),
    );
    expect(questions[0].information).toBeCloseTo(best, 10);
    // What has been asked is known: a second question along the same line tells less than it did before.
    expect(questions[1].information).toBeLessThanOrEqual(questions[0].information);
  });

  it('are refused where there is no posterior', async () => {
    const model = featureModel('global', d, 1);
    const { parameters } = await model.fit(table, votes, { model: 'global', rank: 1, l2, seed: 0 });
    const global = new Population(model, 1, l2, votes.annotators, parameters);
    expect(() => nextQuestions(global, table, 0, 1)).toThrow(/keeps no posterior/);
  });
});

describe('pessimism', () => {
  it('takes away standard deviations beside the mean item', () => {
    const middle = Float64Array.from({ length: k }, (_, c) => {
      let sum = 0;
      for (let i = 0; i < n; i++) sum += point(i)[c] / n;
      return sum;
    });
    const [plain, lower] = [population.scorer(table), lowerConfidence(population, table, 1.7)];
    const sd = (population.posterior(2) as Posterior).sd(point(4).map((x, c) => x - middle[c]));
    expect(lower(2, 4)).toBeCloseTo(plain(2, 4) - 1.7 * sd, 10);
    expect(lowerConfidence(population, table, 0)(2, 4)).toBeCloseTo(plain(2, 4), 12);
    const items = [3, 8, 1, 12];
    const best = bestOf(plain, 1, items);
    for (const item of items) expect(plain(1, items[best])).toBeGreaterThanOrEqual(plain(1, item));
  });

  it('finds the policy whose worst case over the confidence set is best', () => {
    const items = [0, 1, 2, 3, 4, 5];
    const reward = population.scorer(table);
    const posterior = population.posterior(3) as Posterior;
    const worstCase = (policy: ArrayLike<number>, radius: number) => {
      const delta = new Float64Array(k);
      let gain = 0;
      for (const [i, item] of items.entries()) {
        const p = policy[i] - 1 / items.length;
        gain += p * reward(3, item);
        for (let c = 0; c < k; c++) delta[c] += p * point(item)[c];
      }
      return gain - radius * posterior.sd(delta);
    };
    for (const radius of [0, 0.4, 1, confidenceRadius(k, 0.95)]) {
      const { policy, value, gap } = pessimisticPolicy(population, table, 3, items, radius);
      expect(policy.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 10);
      expect(value).toBeCloseTo(worstCase(policy, radius), 8);
      expect(gap).toBeLessThan(0.02);
      // No random distribution does better by more than the gap says.
      for (let round = 0; round < 400; round++) {
        const other = items.map(() => (-Math.log(1 - random.uniform())) ** (1 + (round % 4)));
        const total = other.reduce((a, b) => a + b, 0);
        expect(
          worstCase(
            other.map((p) => p / total),
            radius,
          ),
        ).toBeLessThanOrEqual(value + gap + 1e-9);
      }
    }
    // With no doubt all goes to the best item; with all the doubt in the world the reference stays.
    const sure = pessimisticPolicy(population, table, 3, items, 0);
    expect(Math.max(...sure.policy)).toBeCloseTo(1, 1);
    expect(pessimisticPolicy(population, table, 3, items, 1e3).value).toBeCloseTo(0, 0);
  });

  it('has radii of χ² quantiles', () => {
    expect(confidenceRadius(1, 0.95) ** 2).toBeCloseTo(3.84, 0);
    expect(confidenceRadius(4, 0.95) ** 2).toBeCloseTo(9.488, 1);
    expect(confidenceRadius(10, 0.9) ** 2).toBeCloseTo(15.987, 1);
  });
});

describe('everyone together', () => {
  it('runs from the mean to the least', () => {
    const rewards = [1, -2, 0.5];
    const weights = [1, 1, 2];
    expect(aggregateRewards(rewards, weights, 0)).toBeCloseTo(0, 12);
    expect(aggregateRewards(rewards, weights, Number.NEGATIVE_INFINITY)).toBe(-2);
    expect(aggregateRewards(rewards, weights, Number.POSITIVE_INFINITY)).toBe(1);
    expect(aggregateRewards(rewards, weights, -0.7)).toBeCloseTo(
      Math.log((Math.exp(-0.7) + Math.exp(1.4) + 2 * Math.exp(-0.35)) / 4) / -0.7,
      12,
    );
    expect(aggregateRewards(rewards, weights, -800)).toBeCloseTo(-2, 2);
    expect(aggregateRewards(rewards, weights, 1e-9)).toBeCloseTo(0, 8);
    expect(() => aggregateRewards(rewards, [0, 0, 0], 1)).toThrow(/add up to nothing/);
  });

  it('by groups takes their means first', () => {
    const groups = ['a', 'a', 'b', 'b', 'b'];
    const scorer = population.scorer(table);
    const relative = (u: number, item: number) => {
      let middle = 0;
      for (let i = 0; i < n; i++) middle += scorer(u, i) / n;
      return scorer(u, item) - middle;
    };
    const of = (members: number[]) => members.reduce((sum, u) => sum + relative(u, 7) / members.length, 0);
    const worst = aggregateScorer(population, table, { alpha: Number.NEGATIVE_INFINITY, groups });
    expect(worst(7)).toBeCloseTo(Math.min(of([0, 1]), of([2, 3, 4])), 10);
    const mean = aggregateScorer(population, table, { alpha: 0, groups, equalGroups: true });
    expect(mean(7)).toBeCloseTo((of([0, 1]) + of([2, 3, 4])) / 2, 10);
  });
});

describe('ties', () => {
  const mixed = someVotes(12, 0.3);
  const rewards = Float64Array.from({ length: n }, () => random.normal());
  const lossOf = (given: Votes) => {
    const gradient = new Float64Array(1);
    return linearObjective(
      { votes: given, points: new Float64Array(n), base: rewards, k: 1, l2: 0 },
      gradient,
      gradient,
    );
  };
  const difference = (v: number) => rewards[mixed.items[2 * v]] - rewards[mixed.items[2 * v + 1]];

  it.each(['davidson', 'rao_kupper'] as const)('%s is the likelihood of lib/losses', (type) => {
    const nu = 1.8;
    const differences = Float64Array.from({ length: mixed.m }, (_, v) => difference(v));
    const tied = Uint8Array.from({ length: mixed.m }, (_, v) => (isTie(mixed, v) ? 1 : 0));
    const { rowLosses } = tieLoss({ differences, tied }, { type, nu });
    const expected = rowLosses.reduce((sum, loss, v) => sum + mixed.weights[v] * loss, 0);
    // Rao and Kupper's two opposite choices leave out a constant of every tie.
    const constant = type === 'davidson' ? 0 : Math.log(nu * nu - 1);
    const heavy = mixed.weights.reduce((sum, w, v) => sum + (tied[v] ? w : 0), 0);
    expect(lossOf(withTies(mixed, { type, nu }))).toBeCloseTo(expected + constant * heavy, 8);
  });

  it.each(['davidson', 'rao_kupper'] as const)('%s finds the likeliest nu', (type) => {
    const differences = Float64Array.from({ length: 4000 }, () => 2 * random.normal());
    const nu = 2.2;
    const tied = new Uint8Array(4000);
    for (let v = 0; v < 4000; v++) {
      const x = differences[v];
      const { rowLosses } = tieLoss({ differences: Float64Array.of(x), tied: Uint8Array.of(1) }, { type, nu });
      tied[v] = random.uniform() < Math.exp(-rowLosses[0]) ? 1 : 0;
      if (
        !tied[v] &&
        random.uniform() >
          Math.exp(-tieLoss({ differences: Float64Array.of(x), tied: Uint8Array.of(0) }, { type, nu }).rowLosses[0]) /
            (1 - Math.exp(-rowLosses[0]))
      )
        differences[v] = -x;
    }
    const found = likeliestNu(type, differences, tied, new Float64Array(4000).fill(1));
    expect(Math.abs(Math.log(found / nu))).toBeLessThan(0.15);
  });

  it('pull rewards together', async () => {
    const model = featureModel('low-rank', d, 1);
    const options = { model: 'low-rank', rank: 1, l2, seed: 0 } as const;
    const which = Int32Array.from([...Array(mixed.m).keys()].filter((v) => !isTie(mixed, v)));
    const without = await model.fit(table, subVotes(mixed, which), options);
    const size = (shared: Float64Array) => Math.hypot(...shared.subarray(d));
    for (const type of ['davidson', 'rao_kupper'] as const) {
      const { parameters, report } = await model.fit(table, withTies(mixed, { type, nu: 1.5 }), options);
      expect(report.converged).toBe(true);
      expect(size(parameters.shared)).not.toBeCloseTo(size(without.parameters.shared), 2);
    }
  });
});
