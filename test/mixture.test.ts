// One policy from several: samples to L with errors, the mixture as an artefact, and the artefact wherever an adapter goes.
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { bootstrapL, estimateL, interval, promptMeans } from '../lib/aggregation/estimate.js';
import { drawComponent, mixtureLogp, readMixture } from '../lib/aggregation/mixture-file.js';
import { drawPrompts, sampleLogRatios } from '../lib/aggregation/sample.js';
import { sideBySide } from '../lib/aggregation/side-by-side.js';
import { Random } from '../lib/base/random.js';
import { Model, savePeft } from '../lib/index.js';
import { aggregationSection } from '../lib/report/aggregation.js';
import { randomBank } from './support/engine.js';
import { fixture, program, scratch } from './support/runs.js';

const { path } = scratch();
const f = fixture('llama-old');
const runtime = ['--dtype', 'float32', '--threads', '1'];
const json = async (...argv: string[]) => {
  const { status, stdout, stderr } = await program(...argv, ...runtime, '--json');
  expect(stderr).toBe('');
  expect(status).toBe(0);
  return JSON.parse(stdout);
};
const failure = async (...argv: string[]) => {
  const { status, stderr } = await program(...argv, ...runtime, '--json');
  expect(status).toBe(2);
  return stderr;
};

describe('estimates of L', () => {
  const random = new Random(3);
  const [K, J, prompts, perPrompt] = [2, 3, 40, 2];
  const ratios = Array.from({ length: J }, (_, j) =>
    Array.from({ length: K }, (_, k) =>
      Float64Array.from({ length: prompts * perPrompt }, (_, s) => k - 2 * j + Math.sin(s >> 1) + random.normal()),
    ),
  );

  it('are means over samples, with the standard error of means of prompts', () => {
    const { L, standardErrors } = estimateL(promptMeans({ ratios, prompts, perPrompt }));
    for (let k = 0; k < K; k++) {
      for (let j = 0; j < J; j++) {
        const own = ratios[j][k];
        expect(L[k][j]).toBeCloseTo(own.reduce((a, b) => a + b, 0) / own.length, 12);
        const means = Array.from({ length: prompts }, (_, p) => (own[2 * p] + own[2 * p + 1]) / 2);
        const variance = means.reduce((sum, m) => sum + (m - L[k][j]) ** 2, 0) / (prompts - 1);
        expect(standardErrors[k][j]).toBeCloseTo(Math.sqrt(variance / prompts), 12);
      }
    }
  });

  it('drawn again spread as their standard errors say', () => {
    const means = promptMeans({ ratios, prompts, perPrompt });
    const { L, standardErrors } = estimateL(means);
    const draws = bootstrapL(means, 2000, 1).map((again) => again[1][2]);
    const spread = Math.sqrt(draws.reduce((sum, d) => sum + (d - L[1][2]) ** 2, 0) / draws.length);
    expect(spread / standardErrors[1][2]).toBeGreaterThan(0.9);
    expect(spread / standardErrors[1][2]).toBeLessThan(1.1);
    const [low, high] = interval(draws);
    expect((high - low) / (2 * 1.96 * spread)).toBeCloseTo(1, 1);
  });

  it('of one prompt have no error, and of none are refused', () => {
    const one = promptMeans({ ratios: [[Float64Array.of(2)], [Float64Array.of(3)]], prompts: 1, perPrompt: 1 });
    expect(estimateL(one)).toEqual({ L: [[2, 3]], standardErrors: [[0, 0]] });
    expect(() => promptMeans({ ratios: [], prompts: 0, perPrompt: 1 })).toThrow('no samples');
    expect(() => promptMeans({ ratios, prompts, perPrompt: 3 })).toThrow('policy 1: found 80 samples, expected 40 × 3');
  });

  it('give every rule and every other policy its regrets', () => {
    // Two types; the third policy serves the first as its own does, the second not at all.
    const L = [
      [1, 0, 1],
      [0, 2, 0],
    ];
    const means = L.map((row) => row.map((value) => new Float64Array(5).fill(value)));
    const least = [0.1, 0.3, 5].map((value) => new Float64Array(5).fill(value));
    const { rules, others } = sideBySide(means, least, 0.5, ['one'], { typeWeights: [0.9, 0.1] });
    const of = (name: string) => rules.find((r) => r.rule === name)!;
    expect(others[0].regrets).toEqual([0, 1]);
    expect(others[0].worst_regret_interval).toEqual([1, 1]);
    // Regrets ½ w_2 and w_1: equal at w_1 = ⅓.
    expect(of('min-max-regret').weights[0]).toBeCloseTo(1 / 3, 9);
    expect(of('min-max-regret').worst_regret).toBeCloseTo(1 / 3, 9);
    expect(of('mean').weights).toEqual([1, 0]);
    expect(of('mean').regrets).toEqual([0, 1]);
    // Of the types' own policies the second has samples whose least reward is highest.
    expect(of('max-min-sample').weights).toEqual([0, 1]);
    expect(of('max-min-sample').regrets).toEqual([0.5, 0]);
  });
});

describe('a mixture of policies', () => {
  beforeAll(async () => {
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const bank = randomBank(model, ['x', 'y', 'z']);
    for (const name of ['x', 'y', 'z']) await savePeft(bank, name, path(name));
  });
  const model = ['--model', f.model];
  const types = ['--adapter', path('x'), '--adapter', path('y')];
  const quick = ['--data', f.prefs, '--samples', '2', '--max-new-tokens', '6'];

  it('is written by aggregate, scores as the log of the mean of likelihoods, and is drawn by its weights', async () => {
    const made = await json('aggregate', ...model, ...types, ...quick, '--output', path('mix'), '--compare', path('z'));
    expect(made.types).toEqual(['x', 'y']);
    expect(made.weights.reduce((a: number, b: number) => a + b)).toBeCloseTo(1, 9);
    expect(made.regrets).toHaveLength(2);
    expect(made.others.map((o: { name: string }) => o.name)).toEqual(['z']);
    expect(made.worst_regret).toBeCloseTo(Math.max(0, ...made.regrets), 12);
    const file = JSON.parse(readFileSync(join(path('mix'), 'mixture.json'), 'utf8'));
    expect(file.policies).toEqual([
      { name: 'x', weight: made.weights[0] },
      { name: 'y', weight: made.weights[1] },
    ]);

    // Weights that are far from one another and from 0 make a better test than those of a random policy.
    writeFileSync(
      join(path('mix'), 'mixture.json'),
      JSON.stringify({
        policies: [
          { name: 'x', weight: 3 },
          { name: 'y', weight: 1 },
        ],
      }),
    );
    const scored = await json('score', ...model, ...types, '--adapter', path('mix'), '--data', f.prefs);
    expect(scored.policies).toEqual(['base', 'x', 'y', 'mix']);
    for (const { logps } of scored.rows) {
      for (const c of [0, 1])
        expect(logps.mix[c]).toBeCloseTo(Math.log(0.75 * Math.exp(logps.x[c]) + 0.25 * Math.exp(logps.y[c])), 9);
    }

    const { overall, policies } = await json('eval', ...model, ...types, '--adapter', path('mix'), '--data', f.prefs);
    let likelihood = 0;
    for (const { logps } of scored.rows) {
      const margin = logps.mix[0] - logps.base[0] - (logps.mix[1] - logps.base[1]);
      likelihood -= Math.log1p(Math.exp(-0.1 * margin)) / scored.rows.length;
    }
    expect(overall.log_likelihood).toBeCloseTo(likelihood, 6);
    expect(Object.keys(policies)).toEqual(['x', 'y', 'mix']);

    const draw = ['--prompt', 'ab', '--samples', '24', '--max-new-tokens', '5', '--seed', '4'];
    const mixed = await json('generate', ...model, '--adapter', path('mix'), ...draw);
    const alone = await json('generate', ...model, ...types, ...draw);
    const texts = (all: { policy: string; text: string }[], name: string) =>
      all.filter((s) => s.policy === name).map((s) => s.text);
    let first = 0;
    texts(mixed.samples, 'mix').forEach((text, i) => {
      const speaker = drawComponent([0.75, 0.25], 4 + i);
      first += speaker === 0 ? 1 : 0;
      expect(text).toBe(texts(alone.samples, speaker === 0 ? 'x' : 'y')[i]);
    });
    expect(first).toBeGreaterThan(12);
    expect(first).toBeLessThan(24);
  });

  it('says the same for the same seed, and another for another', async () => {
    const at = (seed: string) => json('aggregate', ...model, ...types, ...quick, '--seed', seed);
    const one = await at('1');
    expect(await at('1')).toEqual(one);
    expect((await at('2')).L).not.toEqual(one.L);
  });

  it("samples of a policy do not depend on which others are sampled, and L's diagonal is what its own samples say", async () => {
    using loaded = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const bank = randomBank(loaded, ['x', 'y', 'z']);
    const prompts = [Int32Array.of(1, 40, 41), Int32Array.of(1, 50)];
    const reference = async (groups: readonly { completions: Int32Array[] }[]) =>
      new Float64Array(groups.reduce((n, g) => n + g.completions.length, 0));
    const options = { maxNewTokens: 5, perPrompt: 3, seed: 9 };
    const both = await sampleLogRatios(loaded, bank, [0, 1], [0, 1], reference, prompts, options);
    const first = await sampleLogRatios(loaded, bank, [0], [1], reference, prompts, options);
    expect(first.means[0][0]).toEqual(both.means[1][0]);
    expect(both.means[0][0].every((v) => v < 0)).toBe(true);
    for (const [p, value] of both.least[0].entries())
      expect(value).toBeLessThanOrEqual(Math.min(both.means[0][0][p], both.means[1][0][p]));
  });

  it('of weights that are equal in log space is exact for any K', () => {
    expect(mixtureLogp([-800, -800, -800], [0.2, 0.3, 0.5])).toBeCloseTo(-800, 12);
    expect(mixtureLogp([Number.NEGATIVE_INFINITY, -2], [0.5, 0.5])).toBeCloseTo(-2 + Math.log(0.5), 12);
    expect(mixtureLogp([Number.NEGATIVE_INFINITY], [1])).toBe(Number.NEGATIVE_INFINITY);
  });

  it('leaves out policies that are never drawn', () => {
    cpSync(path('mix'), path('sure'), { recursive: true });
    const policies = [
      { name: 'x', weight: 0 },
      { name: 'y', weight: 2 },
    ];
    writeFileSync(join(path('sure'), 'mixture.json'), JSON.stringify({ policies }));
    expect(readMixture(path('sure'))).toEqual([{ name: 'y', weight: 1, dir: join(path('sure'), 'y') }]);
  });

  it.each([
    ['{', 'is no JSON'],
    ['{"weights":[1]}', 'was made from a matrix, not from a run'],
    ['{"policies":[]}', 'expected a list of { name, weight }'],
    ['{"policies":[{"name":"x","weight":-1}]}', 'weights of at least 0'],
    ['{"policies":[{"name":"x","weight":0}]}', 'every weight is 0'],
    ['{"policies":[{"name":"w","weight":1}]}', 'policy "w" has no folder'],
    ['{"policies":[{"name":"..","weight":1}]}', 'policy ".." has no folder'],
  ])('refuses mixture.json %s', async (text, message) => {
    cpSync(path('x'), path('bad', 'x'), { recursive: true });
    writeFileSync(path('bad', 'mixture.json'), text);
    expect(await failure('score', ...model, '--adapter', path('bad'), '--data', f.prefs)).toContain(message);
  });

  it('needs two policies that speak, prompts, and one source', async () => {
    const x = ['--adapter', path('x')];
    expect(await failure('aggregate', ...model, ...x, ...quick)).toContain('found 1 policy, expected one for each of');
    expect(await failure('aggregate', ...model, ...types)).toContain('found no --data ROWS');
    expect(await failure('aggregate', ...model, '--matrix', 'm.json')).toContain('found 2 of them');
    expect(await failure('aggregate', ...model, ...types, '--adapter', `m=${path('mix')}`, ...quick)).toContain(
      'found a mixture',
    );
    expect(() => drawPrompts([], 10, 5, 0)).toThrow('found no prompt of at most 10 tokens');
  });
});

describe('the report', () => {
  it('shows every aggregator, least worst regret first, with names escaped', () => {
    const regrets = (a: number, b: number) => ({
      regrets: [a, b],
      regret_intervals: [
        [a - 0.1, a + 0.1],
        [b - 0.1, b + 0.1],
      ] as [number, number][],
      worst_regret: Math.max(a, b),
      worst_regret_interval: [0, 1] as [number, number],
    });
    const found = {
      types: ['short', '<b>long</b>'],
      sampling: { prompts: 8, per_prompt: 1 },
      rules: [
        { rule: 'mean', weights: [1, 0], ...regrets(0, 2) },
        { rule: 'min-max-regret', weights: [0.5, 0.5], ...regrets(0.9, 1) },
      ],
      others: [{ name: 'one', ...regrets(-0.25, 1.5) }],
    };
    const text = String(aggregationSection(found));
    const order = ['min-max-regret', 'one', 'mean'].map((name) => text.indexOf(`<bdi>${name}</bdi>`));
    expect(order).toEqual([...order].sort((a, b) => a - b));
    expect(order[0]).toBeGreaterThan(0);
    expect(text).toContain('&lt;b&gt;long&lt;/b&gt;');
    expect(text.match(/<rect class="type-1"/g)).toHaveLength(3);
    expect(aggregationSection(null)).toBeNull();
  });
});
