import { describe, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
import { itemTable } from '../lib/features/items.js';
import { project } from '../lib/features/linalg.js';
import { featureModel, featureModels, sizeOf } from '../lib/features/models/index.js';
import { jointObjective } from '../lib/features/models/joint.js';
import { SubspaceFit } from '../lib/features/models/low-rank.js';
import { fitLinear, linearObjective } from '../lib/features/newton.js';
import { fitRidge } from '../lib/features/ridge.js';
import { withTies } from '../lib/features/ties.js';
import type { Votes } from '../lib/features/votes.js';

const random = new Random(7);
const d = 5;
const table = itemTable(
  'items',
  Array.from({ length: 12 }, (_, i) => `i${i}`),
  Float32Array.from({ length: 12 * d }, () => random.normal()),
  d,
);

/** Pairs with margins and weights, whole and top-m rankings, and a vote of nobody. */
function votesOf(annotators: number, each: number): Votes {
  const votes: { u: number; items: number[]; stages: number }[] = [];
  for (let u = 0; u < annotators; u++) {
    for (let p = 0; p < each; p++) {
      const shuffled = [...Array(12).keys()].sort(() => random.uniform() - 0.5);
      const n = p % 3 === 2 ? 4 : 2;
      votes.push({ u: u === 0 && p === 0 ? -1 : u, items: shuffled.slice(0, n), stages: n === 2 ? 1 : 2 + (p % 2) });
    }
  }
  const offsets = Int32Array.from([0, ...votes.map((v) => v.items.length)]);
  for (let i = 1; i < offsets.length; i++) offsets[i] += offsets[i - 1];
  return {
    annotators: Array.from({ length: annotators }, (_, u) => `u${u}`),
    annotator: Int32Array.from(votes, (v) => v.u),
    offsets,
    items: Int32Array.from(votes.flatMap((v) => v.items)),
    stages: Int32Array.from(votes, (v) => v.stages),
    weights: Float64Array.from(votes, (_, i) => 0.5 + (i % 3)),
    margins: Float64Array.from(votes, (v, i) => (v.items.length === 2 && i % 4 === 0 ? 0.3 : 0)),
    rows: Int32Array.from(votes, (_, i) => i),
    m: votes.length,
  };
}
const votes = votesOf(4, 9);

/** Largest difference between a gradient and central differences, relative to the gradient's size. */
function worst(objective: (x: Float64Array, g: Float64Array) => number, x: Float64Array, h = 1e-5): number {
  const gradient = new Float64Array(x.length);
  objective(x, gradient);
  const analytic = gradient.slice();
  const size = Math.sqrt(analytic.reduce((sum, g) => sum + g * g, 0) / x.length) + 1e-12;
  let top = 0;
  for (let i = 0; i < x.length; i++) {
    const [up, down] = [h, -h].map((step) => {
      const moved = x.slice();
      moved[i] += step;
      return objective(moved, gradient);
    });
    top = Math.max(top, Math.abs((up - down) / (2 * h) - analytic[i]) / size);
  }
  return top;
}

describe('gradients against finite differences', () => {
  it.each(featureModels)('%s', (name) => {
    const model = featureModel(name, d, 3);
    const x = Float64Array.from({ length: sizeOf(model.layout) + 4 * model.own }, () => 0.7 * random.normal());
    expect(worst((at, g) => jointObjective(model, table, votes, 0.6, at, g), x)).toBeLessThan(1e-7);
  });

  it.each(
    featureModels.flatMap((name) => (['davidson', 'rao_kupper'] as const).map((type) => [name, type] as const)),
  )('%s with ties, %s', (name, type) => {
    // Every fourth pair is a tie.
    const stages = votes.stages.map((s, v) => (votes.offsets[v + 1] - votes.offsets[v] === 2 && v % 4 === 1 ? 0 : s));
    const margins = votes.margins.map((margin, v) => (stages[v] === 0 ? 0 : margin));
    const tied = withTies({ ...votes, stages, margins }, { type, nu: 1.6 });
    expect(stages.filter((s) => s === 0).length).toBeGreaterThan(3);
    const model = featureModel(name, d, 3);
    const x = Float64Array.from({ length: sizeOf(model.layout) + 4 * model.own }, () => 0.7 * random.normal());
    expect(worst((at, g) => jointObjective(model, table, tied, 0.6, at, g), x)).toBeLessThan(1e-7);
  });

  it('the subspace of low-rank, every coordinate fitted', () => {
    const fit = new SubspaceFit(table, votes, 2, { model: 'low-rank', rank: 2, l2: 0.4, seed: 0 });
    const x = Float64Array.from({ length: d * 2 + d }, () => random.normal());
    expect(worst((at, g) => fit.objective(at, g), x)).toBeLessThan(1e-5);
  });

  it('the subspace of low-rank over features in columns', () => {
    const wide = { features: Float32Array.from({ length: 12 * 6 }, () => random.normal()), n: 12, d: 6 };
    const model = featureModel('low-rank', 6, 2, 3);
    expect([model.own, sizeOf(model.layout)]).toEqual([6, 4 + 6]);
    const joint = Float64Array.from({ length: sizeOf(model.layout) + 4 * model.own }, () => 0.7 * random.normal());
    expect(worst((at, g) => jointObjective(model, wide, votes, 0.6, at, g), joint)).toBeLessThan(1e-7);
    const fit = new SubspaceFit(wide, votes, 1, { model: 'low-rank', rank: 1, l2: 0.4, seed: 0 }, 3);
    const x = Float64Array.from({ length: 2 + 6 }, () => random.normal());
    expect(worst((at, g) => fit.objective(at, g), x)).toBeLessThan(1e-5);
    // Rewards by points and by weights on the features are the same.
    const own = joint.subarray(joint.length - model.own);
    const shared = joint.subarray(0, sizeOf(model.layout));
    const { base, points } = model.items(wide, shared);
    const w = model.weights!(shared, own);
    for (let i = 0; i < wide.n; i++) {
      const through = own.reduce((sum, z, c) => sum + z * points[i * 6 + c], base[i]);
      expect(through).toBeCloseTo(
        w.reduce((sum, x, j) => sum + x * wide.features[i * 6 + j], 0),
        6,
      );
    }
  });

  it('coordinates of one annotator, and the Hessian', () => {
    const points = Float64Array.from(table.features);
    const base = Float64Array.from({ length: 12 }, () => random.normal());
    const problem = { votes, points, k: d, base, l2: 0.3 };
    const x = Float64Array.from({ length: d }, () => random.normal());
    expect(worst((at, g) => linearObjective(problem, at, g), x)).toBeLessThan(1e-7);
    const hessian = new Float64Array(d * d);
    linearObjective(problem, x, new Float64Array(d), hessian);
    for (let a = 0; a < d; a++) {
      const component = (at: Float64Array, out: Float64Array) => {
        const g = new Float64Array(d);
        const h = new Float64Array(d * d);
        linearObjective(problem, at, g, h);
        for (let b = 0; b < d; b++) out[b] = a >= b ? h[a * d + b] : h[b * d + a];
        return g[a];
      };
      expect(worst(component, x)).toBeLessThan(1e-6);
    }
  });
});

describe('fits', () => {
  it('ridge in the span of the differences is ridge over all features', () => {
    const which = Int32Array.of(0, 1, 3);
    const few = fitRidge(table, votes, { l2: 0.5, which });
    const all = fitLinear({ votes, which, points: Float64Array.from(table.features), k: d, l2: 0.5 }, undefined, 1e-14);
    for (let j = 0; j < d; j++) expect(few.w[j]).toBeCloseTo(all.z[j], 8);
    expect(few.value).toBeCloseTo(all.value, 10);
  });

  it.each(featureModels)('%s ends where its gradient vanishes', async (name) => {
    const model = featureModel(name, d, 2);
    const { parameters, report } = await model.fit(table, votes, { model: name, rank: 2, l2: 1, seed: 1 });
    expect(report.converged).toBe(true);
    const x = Float64Array.from([...parameters.shared, ...parameters.own]);
    const gradient = new Float64Array(x.length);
    // local's shared vector is only a summary, and low-rank's factor has a prior through its coordinates
    jointObjective(model, table, votes, 1, x, gradient, ['low-rank', 'mixed', 'local'].includes(name) ? 0 : 1);
    const own = gradient.subarray(parameters.shared.length);
    for (const g of own) expect(Math.abs(g)).toBeLessThan(1e-3);
    if (['low-rank', 'mixed', 'local'].includes(name)) return;
    for (const g of gradient) expect(Math.abs(g)).toBeLessThan(1e-3);
  });

  it('ridge over many votes is the same by L-BFGS', () => {
    const many = votesOf(4, 9);
    const wide = 161;
    const items = itemTable(
      'items',
      table.ids,
      Float32Array.from({ length: 12 * wide }, () => random.normal()),
      wide,
    );
    // More differences than Newton takes features.
    const which = Int32Array.from([...Array(6)].flatMap(() => [...Array(many.m).keys()]));
    const fit = fitRidge(items, many, { l2: 1, which });
    const points = Float64Array.from(items.features);
    const exact = fitLinear({ votes: many, which, points, k: wide, l2: 1 }, undefined, 1e-14);
    expect(fit.steps).toBeGreaterThan(exact.steps);
    for (let j = 0; j < wide; j++) expect(fit.w[j]).toBeCloseTo(exact.z[j], 5);
  });

  it('low-rank over columns finds planted matrices that a vector of the same rank cannot hold', async () => {
    const [wide, columns, voters, each, n] = [6, 4, 60, 30, 80];
    const items = {
      features: Float32Array.from({ length: n * wide * columns }, () => random.normal()),
      n,
      d: wide * columns,
    };
    const direction = Float64Array.from({ length: wide }, () => random.normal());
    const norm = Math.hypot(...direction);
    const planted = Array.from({ length: voters }, () => {
      const z = Array.from({ length: columns }, () => 1.5 * random.normal());
      return Float64Array.from({ length: items.d }, (_, j) => (z[Math.floor(j / wide)] * direction[j % wide]) / norm);
    });
    const reward = (u: number, i: number) =>
      planted[u].reduce((sum, w, j) => sum + w * items.features[i * items.d + j], 0);
    const cast = votesOf(voters, each);
    const pairs = Int32Array.from({ length: 2 * cast.m }, () => random.below(n));
    const asked: Votes = {
      ...cast,
      annotator: Int32Array.from(cast.annotator, (u) => Math.max(0, u)),
      offsets: Int32Array.from({ length: cast.m + 1 }, (_, v) => 2 * v),
      items: pairs,
      stages: new Int32Array(cast.m).fill(1),
      weights: new Float64Array(cast.m).fill(1),
      margins: new Float64Array(cast.m),
    };
    for (let v = 0; v < cast.m; v++) {
      const [a, b] = pairs.subarray(2 * v);
      const gap = reward(asked.annotator[v], a) - reward(asked.annotator[v], b);
      if (random.uniform() > 1 / (1 + Math.exp(-gap))) pairs.set([b, a], 2 * v);
    }
    const options = { model: 'low-rank' as const, rank: 1, l2: 0.5, seed: 0 };
    const error = async (made: ReturnType<typeof featureModel>) => {
      const { parameters } = await made.fit(items, asked, options);
      let sum = 0;
      for (let u = 0; u < voters; u++) {
        const w = made.weights!(parameters.shared, parameters.own.subarray(u * made.own, (u + 1) * made.own));
        sum += planted[u].reduce((s, x, j) => s + (x - w[j]) ** 2, 0) / planted[u].reduce((s, x) => s + x * x, 0);
      }
      return sum / voters;
    };
    const matrix = await error(featureModel('low-rank', items.d, 1, columns));
    expect(matrix).toBeLessThan(0.35);
    expect(await error(featureModel('low-rank', items.d, 1))).toBeGreaterThan(2 * matrix);
  });

  it('low-rank of full rank is a mean and one reward for each about it', async () => {
    const l2 = 1;
    const named = { ...votes, annotator: votes.annotator.map((u) => Math.max(u, 0)) };
    const { parameters } = await featureModel('low-rank', d, d).fit(table, named, {
      model: 'low-rank',
      rank: d,
      l2,
      seed: 1,
    });
    const factor = parameters.shared.subarray(0, d * d);
    const mean = parameters.shared.subarray(d * d);
    const base = project(table.features, table.n, d, mean, 1);
    const points = Float64Array.from(table.features);
    for (let u = 0; u < 4; u++) {
      const which = Int32Array.from([...named.annotator.keys()].filter((v) => named.annotator[v] === u));
      const { z } = fitLinear({ votes: named, which, points, base, k: d, l2 }, undefined, 1e-14);
      const own = project(factor, d, d, parameters.own.subarray(u * d, (u + 1) * d), 1);
      for (let j = 0; j < d; j++) expect(own[j]).toBeCloseTo(z[j], 6);
    }
  });
});
