// Covariance matrix adaptation on functions whose minimum is known, and the search for weights in a run of soups.
import { appendFileSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { Random } from '../lib/base/random.js';
import type { Config } from '../lib/config/index.js';
import { generate } from '../lib/generation/engine.js';
import { Model } from '../lib/model/model.js';
import { writeReport } from '../lib/report/index.js';
import { CmaEs, eigenOf } from '../lib/search/cma-es.js';
import { runsOfLayers } from '../lib/soups/search.js';
import type { SoupsResult } from '../lib/soups/train.js';
import { train } from '../lib/training/train.js';
import { fixture, scratch, writeRows } from './support/runs.js';
import { tinySoups, tinySteps } from './support/soups.js';

function minimise(f: (x: number[]) => number, start: number[], generations: number, seed = 1, population?: number) {
  const search = new CmaEs({ start, deviation: 0.5, seed, population });
  for (let g = 0; g < generations; g++) search.tell(search.ask().map(f));
  return search;
}

describe('eigenvectors by Jacobi', () => {
  it.each([1, 2, 3, 7])('of a random symmetric matrix of %i rows', (n) => {
    const random = new Random(n);
    const a = Array.from({ length: n }, () => new Array<number>(n).fill(0));
    for (let i = 0; i < n; i++) for (let j = 0; j <= i; j++) a[i][j] = a[j][i] = random.normal();
    const { values, vectors } = eigenOf(a);
    for (let i = 0; i < n; i++)
      for (let j = 0; j < n; j++) {
        const back = values.reduce((sum, value, k) => sum + vectors[i][k] * value * vectors[j][k], 0);
        expect(back).toBeCloseTo(a[i][j], 10);
        const dot = vectors.reduce((sum, row) => sum + row[i] * row[j], 0);
        expect(dot).toBeCloseTo(i === j ? 1 : 0, 10);
      }
  });
});

describe('CMA-ES', () => {
  const sphere = (x: number[]) => x.reduce((sum, v, i) => sum + (v - i) ** 2, 0);
  it.each([1, 2, 3, 6])('finds the minimum of a sphere in %i dimensions', (n) => {
    const { mean } = minimise(sphere, new Array(n).fill(3), 150);
    mean.forEach((v, i) => {
      expect(v).toBeCloseTo(i, 4);
    });
  });

  it('follows the bent valley of Rosenbrock’s function, and a long thin ellipsoid that is turned', () => {
    const rosenbrock = ([x, y]: number[]) => 100 * (y - x * x) ** 2 + (1 - x) ** 2;
    const { mean } = minimise(rosenbrock, [-1.2, 1], 300);
    expect(mean[0]).toBeCloseTo(1, 4);
    expect(mean[1]).toBeCloseTo(1, 4);
    const thin = ([x, y]: number[]) => 1e6 * (x + y - 1) ** 2 + (x - y) ** 2;
    const found = minimise(thin, [2, -3], 300);
    expect(found.mean[0]).toBeCloseTo(0.5, 4);
    expect(found.mean[1]).toBeCloseTo(0.5, 4);
  });

  it('needs the covariance for that: 150 generations bring the thin ellipsoid below what its axes allow', () => {
    // A step that does not know the valley's direction is as short as the valley is thin: 1e-3 of the way.
    const thin = ([x, y]: number[]) => 1e6 * (x + y - 1) ** 2 + (x - y) ** 2;
    expect(thin(minimise(thin, [2, -3], 150).mean)).toBeLessThan(1e-6);
  });

  it('takes noise and NaN, and says the same twice', () => {
    const random = new Random(5);
    const noisy = (x: number[]) => sphere(x) + 0.01 * random.normal();
    const { mean } = minimise(noisy, [2, 2], 60, 2, 20);
    expect(Math.hypot(mean[0], mean[1] - 1)).toBeLessThan(0.15);
    const holes = ([x, y]: number[]) => (x < 0 ? Number.NaN : sphere([x, y]));
    expect(minimise(holes, [2, 2], 100).mean[1]).toBeCloseTo(1, 3);
    expect(minimise(sphere, [2, 2], 9).mean).toEqual(minimise(sphere, [2, 2], 9).mean);
    expect(minimise(sphere, [2, 2], 9).mean).not.toEqual(minimise(sphere, [2, 2], 9, 7).mean);
  });

  it('refuses what cannot be searched', () => {
    const open = (given: object) => () => new CmaEs({ start: [0], deviation: 1, seed: 0, ...given });
    expect(open({ start: [] })).toThrow(/finite numbers/);
    expect(open({ start: [Number.NaN] })).toThrow(/finite numbers/);
    expect(open({ deviation: 0 })).toThrow(/deviation above 0/);
    expect(open({ population: 3 })).toThrow(/at least 4 candidates/);
    const search = open({})();
    search.ask();
    expect(() => search.tell([1])).toThrow(/found 1 values, expected 4/);
  });
});

describe('weights in a run of soups', () => {
  const { path } = scratch();
  const f = fixture('mistral');
  let count = 0;
  const prompts = writeRows(
    path('prompts.jsonl'),
    f.rows.map(({ prompt }) => ({ prompt })),
  );
  const config = (search: NonNullable<Config['soups']>['search']): Config => ({
    ...tinySoups(prompts),
    train: { ...tinySteps, steps: 8, learning_rate: 0.05 },
    soups: {
      wishes: [
        { name: 'a', rewards: [{ type: 'pattern', pattern: '[a-m]', count: true }] },
        { name: 'z', rewards: [{ type: 'pattern', pattern: '[n-z]', count: true }] },
      ],
      grid: 2,
      sums: [1, 1.5],
      search,
    },
    output: path(`run-${count++}`),
  });
  const run = async (given: Config, stop?: AbortSignal) => {
    await train(given, { quiet: true, resume: true, stop });
    return (JSON.parse(readFileSync(`${given.output}/soups.json`, 'utf8')) as SoupsResult).search!;
  };
  const lines = (given: Config) => readFileSync(`${given.output}/search.jsonl`, 'utf8').trim().split('\n');

  it('tries the grid and what it extends to, and takes the best', async () => {
    const given = config({ method: 'grid', target: { a: 1, z: 0 }, answers: 12 });
    const found = await run(given);
    const tried = lines(given).map((line) => JSON.parse(line) as { weights: number[]; value: number });
    expect(tried.map(({ weights }) => weights)).toEqual([
      [1, 0],
      [0.5, 0.5],
      [0, 1],
      [1.5, 0],
      [0.75, 0.75],
      [0, 1.5],
    ]);
    const best = tried.reduce((a, b) => (b.value > a.value ? b : a));
    expect(found).toMatchObject({ ...best, target: [1, 0], layers: [[0, expect.any(Number)]], evaluations: 7 });
    expect(readFileSync(`${given.output}/report.html`, 'utf8')).toContain('Weights that were searched for');
  });

  it('finds weights that are no worse than the wants, holds them small with a penalty, and goes on', async () => {
    const free = config({ target: { a: 0.5, z: 0.5 }, evaluations: 40, answers: 12 });
    const found = await run(free);
    const first = JSON.parse(lines(free)[0]) as { weights: number[]; value: number };
    expect(first.weights).toEqual([0.5, 0.5]);
    expect(found.value).toBeGreaterThanOrEqual(first.value);
    expect(found.evaluations).toBeLessThanOrEqual(41);
    const held = await run(config({ target: { a: 0.5, z: 0.5 }, evaluations: 40, answers: 12, l1: 100 }));
    const size = (weights: number[]) => weights.reduce((sum, w) => sum + Math.abs(w), 0);
    expect(size(held.weights)).toBeLessThan(0.3);
    expect(size(held.weights)).toBeLessThan(size(found.weights));
    // Half of the tries and half a line are there: the search goes on to the same end, asking for the rest alone.
    const all = lines(free);
    const file = `${free.output}/search.jsonl`;
    rmSync(file);
    appendFileSync(file, `${all.slice(0, 20).join('\n')}\n{"weights":[`);
    rmSync(`${free.output}/soups.json`);
    expect(await run(free)).toEqual(found);
  });

  it('gives runs of layers weights of their own, and judges the merge of those', async () => {
    expect(runsOfLayers([0, 1, 2, 3, 4, 5, 6], 3)).toEqual([
      [0, 1],
      [2, 4],
      [5, 6],
    ]);
    expect(runsOfLayers([0, 1, 2], 3)).toEqual([0, 1, 2].map((layer) => [layer, layer]));
    expect(runsOfLayers([1, 4, 5, 9], 2)).toEqual([
      [1, 4],
      [5, 9],
    ]);
    const given = config({ target: { a: 1, z: 0 }, evaluations: 40, answers: 12, blocks: 2, l1: 20 });
    const found = await run(given);
    const tried = lines(given).map((line) => JSON.parse(line) as { weights: number[]; value: number });
    expect(tried[0].weights).toEqual([1, 0, 1, 0]);
    expect(found.layers).toHaveLength(2);
    const best = tried.reduce((a, b) => (b.value > a.value ? b : a));
    expect(best.weights.slice(0, 2)).not.toEqual(best.weights.slice(2));
    expect(found).toMatchObject(best);
    // The candidate that was tried unmerged is the adapter that was merged.
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const experts = ['a', 'z'].map((name) => ({ name, dir: `${given.output}/experts/${name}/adapter` }));
    const blocks = found.layers.map(([first, last], b) => {
      return { first, last, weights: best.weights.slice(2 * b, 2 * b + 2) };
    });
    const mixed = await Bank.fromPeft(model.shape, experts, [{ name: 'm', weights: [0, 0], blocks }]);
    const folder = readdirSync(`${given.output}/merged/cat`).find((name) => name.startsWith('layers-'));
    const dir = `${given.output}/merged/cat/${folder}`;
    const merged = await Bank.fromPeft(model.shape, [{ name: 'm', dir }]);
    const ask = async (bank: Bank, policy: number) =>
      (await generate(model, bank, [{ prompt: Int32Array.of(3, 5, 8), maxNewTokens: 12, policy }]))[0];
    const [one, other] = [await ask(mixed, mixed.adapterIndex('m')), await ask(merged, 0)];
    expect(one.tokens).toEqual(other.tokens);
    one.logps.forEach((logp, i) => {
      expect(logp).toBeCloseTo(other.logps[i], 4);
    });
    expect(readFileSync(`${given.output}/report.html`, 'utf8')).toContain('found, layers 0 to');
    // Blocks are held to what runs of layers of a merge are held to.
    const mix = (...runs: [number, number][]) =>
      Bank.fromPeft(model.shape, experts, [
        { name: 'm', weights: [0, 0], blocks: runs.map(([first, last]) => ({ first, last, weights: [1, 0] })) },
      ]);
    await expect(mix([0, 1], [1, 1])).rejects.toThrow(/mix m, layers 1 to 1: layer 1 has weights already/);
    await expect(mix([1, 0])).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
    await expect(mix([0, 9])).rejects.toThrow(/no expert adapts layer 9; the last one is 1/);
    // A run of before layers had weights of their own.
    const result = JSON.parse(readFileSync(`${given.output}/soups.json`, 'utf8'));
    const { layers: _, ...earlier } = result.search;
    earlier.weights = earlier.weights.slice(0, 2);
    writeFileSync(`${given.output}/soups.json`, JSON.stringify({ ...result, search: earlier }));
    await writeReport(given.output!);
    expect(readFileSync(`${given.output}/report.html`, 'utf8')).toMatch(/the wants themselves.*>found</s);
  });

  it('refuses more runs of layers than layers, and a grid over them', async () => {
    await expect(run(config({ blocks: 99 }))).rejects.toThrow(
      /soups\.search\.blocks: found 99, expected at most 2, the layers that experts adapt/,
    );
    const some = config({ blocks: 2 });
    some.adapter = { r: 2, alpha: 4, targets: '.*layers\\.1\\..*(q|v)_proj' };
    // Before an expert is trained on its pairs, which the rewards wait for.
    const pairs = { name: 'a', pairs: f.prefs };
    some.soups = { ...some.soups!, wishes: [pairs, some.soups!.wishes[1]] };
    await expect(run(some)).rejects.toThrow(/found 2, expected at most 1, the layers that experts adapt/);
    expect(existsSync(some.output!)).toBe(false);
    await expect(run(config({ blocks: 2, method: 'grid' }))).rejects.toThrow(/with method grid, expected 1/);
  });

  it('refuses wants of no wish, and no want at all', async () => {
    await expect(run(config({ target: { q: 1 } }))).rejects.toThrow(
      /soups\.search\.target\.q: is no wish of the front/,
    );
    await expect(run(config({ target: { a: 0 } }))).rejects.toThrow(/all are zero/);
  });
});
