import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { evalCommand } from '../lib/api/eval.js';
import { Random } from '../lib/base/random.js';
import { eStep } from '../lib/em/estep.js';
import { chooseTypes, collapsedTypes } from '../lib/em/features/choose.js';
import { Derivatives } from '../lib/em/features/derivatives.js';
import { fitMixture } from '../lib/em/features/mixture.js';
import { TypeFitter, type TypeState } from '../lib/em/features/newton.js';
import { assignTypes } from '../lib/em/features/posterior.js';
import { type MixtureProblem, mixtureProblem, rewardsOf, voteLikelihoods } from '../lib/em/features/problem.js';
import { readResponsibilities, readTypes, responsibilitiesCsv } from '../lib/em/files.js';
import { likeliest } from '../lib/em/outcome.js';
import { assignVotes } from '../lib/em/run.js';
import type { EmSummary } from '../lib/em/summary.js';
import { adjustedRandIndex } from '../lib/evaluation/rand-index.js';
import type { Votes } from '../lib/features/votes.js';
import { type Config, train } from '../lib/index.js';
import { forgetsFrom } from './support/events.js';

/** Votes by utilities [K][n]; `sizes` and `stages` of the questions come in turn. */
function planted(
  utilities: number[][],
  { annotators = 60, questions = 10, sizes = [2], topM = 99, seed = 1 } = {},
): { votes: Votes; type: number[] } {
  const random = new Random(seed);
  const type = Array.from({ length: annotators }, (_, i) => i % utilities.length);
  const lists: number[][] = [];
  const annotator: number[] = [];
  for (let u = 0; u < annotators; u++) {
    for (let q = 0; q < questions; q++) {
      const shown = new Set<number>();
      while (shown.size < sizes[q % sizes.length]) shown.add(random.below(utilities[0].length));
      const key = new Map(
        [...shown].map((i) => [i, utilities[type[u]][i] - Math.log(-Math.log(1 - random.uniform()))]),
      );
      lists.push([...shown].sort((a, b) => key.get(b)! - key.get(a)!));
      annotator.push(u);
    }
  }
  const offsets = Int32Array.from([0, ...lists]);
  lists.forEach((list, v) => {
    offsets[v + 1] = offsets[v] + list.length;
  });
  const m = lists.length;
  const votes: Votes = {
    annotators: type.map((_, i) => `u${i}`),
    annotator: Int32Array.from(annotator),
    offsets,
    items: Int32Array.from(lists.flat()),
    stages: Int32Array.from(lists, (list) => Math.min(topM, list.length - 1)),
    weights: new Float64Array(m).fill(1),
    margins: new Float64Array(m),
    rows: Int32Array.from(lists.keys()),
    m,
  };
  return { votes, type };
}

const normal = (random: Random, n: number, scale = 1) => Array.from({ length: n }, () => scale * random.normal());
const hardTypes = (gamma: readonly Float64Array[]) => [...gamma[0]].map((_, i) => likeliest(gamma.map((g) => g[i])));

describe('the M-step', () => {
  const random = new Random(3);
  const n = 9;
  const d = 4;
  const features = Float32Array.from(normal(random, n * d));
  const utilities = Array.from({ length: n }, (_, i) => features[i * d] - features[i * d + 1]);

  /** Σ γ w log p by plain loops. */
  function plain(problem: MixtureProblem, beta: Float64Array, gamma: Float64Array): number {
    const { votes } = problem;
    const r = rewardsOf(problem, beta, new Float64Array(n));
    let sum = 0;
    for (let v = 0; v < votes.m; v++) {
      const places = [...votes.items.subarray(votes.offsets[v], votes.offsets[v + 1])].map((i) => r[i]);
      places[0] -= votes.margins[v];
      for (let s = 0; s < votes.stages[v]; s++) {
        const tail = places.slice(s).reduce((total, x) => total + Math.exp(x), 0);
        sum += gamma[votes.annotator[v]] * votes.weights[v] * (places[s] - Math.log(tail));
      }
    }
    return sum;
  }

  it.each([
    ['pairs over features', [2], 99, 1, false],
    ['mixed lengths over features', [2, 3, 5], 99, 1, false],
    ['top-2 of five over features', [5], 2, 1, false],
    ['top-2 of five, summed over items first', [5], 2, 40, false],
    ['mixed lengths over plain items', [2, 3, 5], 99, 1, true],
  ] as const)('gradient and Hessian of %s are those of finite differences', (_, sizes, topM, repeat, plainItems) => {
    const { votes } = planted([utilities], { annotators: 6 * repeat, sizes: [...sizes], topM });
    votes.weights.forEach((__, v) => {
      votes.weights[v] = 0.5 + (v % 3);
      if (votes.offsets[v + 1] - votes.offsets[v] === 2) votes.margins[v] = 0.3 * (v % 2);
    });
    const problem = mixtureProblem(votes, plainItems ? n : { features, n, d });
    const beta = Float64Array.from(normal(random, problem.d));
    const gamma = Float64Array.from(votes.annotators, () => random.uniform());
    const rewards = rewardsOf(problem, beta, new Float64Array(n));
    const total = voteLikelihoods(votes, rewards, new Float64Array(votes.m)).reduce(
      (sum, value, v) => sum + gamma[votes.annotator[v]] * value,
      0,
    );
    expect(total).toBeCloseTo(plain(problem, beta, gamma), 8);
    const derivatives = new Derivatives(problem);
    derivatives.at(rewards, gamma);
    const [g, h] = [derivatives.gradient.slice(), derivatives.hessian.slice()];
    const step = 1e-5;
    for (let a = 0; a < problem.d; a++) {
      const moved = (by: number) => beta.map((b, j) => (j === a ? b + by : b));
      const slope = -(plain(problem, moved(step), gamma) - plain(problem, moved(-step), gamma)) / (2 * step);
      expect(Math.abs(g[a] - slope)).toBeLessThan(1e-6 * (1 + votes.m));
      derivatives.at(rewardsOf(problem, moved(step), new Float64Array(n)), gamma);
      const up = derivatives.gradient.slice();
      derivatives.at(rewardsOf(problem, moved(-step), new Float64Array(n)), gamma);
      for (let b = 0; b < problem.d; b++) {
        const second = (up[b] - derivatives.gradient[b]) / (2 * step);
        expect(Math.abs(h[a * problem.d + b] - second)).toBeLessThan(1e-6 * (1 + votes.m));
      }
    }
  });

  it('reaches the same optimum from far off, without a fall on the way', () => {
    const { votes } = planted([utilities], { annotators: 20, sizes: [2, 4] });
    const problem = mixtureProblem(votes, { features, n, d });
    const fitter = new TypeFitter(problem, 0.01);
    const all = new Float64Array(20).fill(1);
    const near = fitter.state();
    fitter.fit(near, all, 1e-9);
    const total = (state: TypeState) => state.likelihoods.reduce((a, b) => a + b, 0) - fitter.penalty(state.beta);
    for (let trial = 0; trial < 10; trial++) {
      const far = fitter.state(Float64Array.from(normal(random, d, 30)));
      for (let step = 0, before = total(far); step < 60; step++) {
        fitter.fit(far, all, 1e-9, 1);
        expect(total(far)).toBeGreaterThanOrEqual(before - 1e-9 * Math.abs(before));
        before = total(far);
      }
      for (let j = 0; j < d; j++) expect(far.beta[j]).toBeCloseTo(near.beta[j], 5);
    }
  });

  it('log-likelihoods are exact where rewards are very far apart', () => {
    const { votes } = planted([utilities], { annotators: 1, questions: 1, sizes: [3] });
    const rewards = new Float64Array(n);
    votes.items.forEach((item, place) => {
      rewards[item] = place * 2000;
    });
    expect(voteLikelihoods(votes, rewards, new Float64Array(1))[0]).toBe(-4000 - 2000);
  });
});

describe('the E-step', () => {
  it('is a softmax in logs: far below the smallest float64 too', () => {
    const likelihoods = [Float64Array.of(-5000, -3000), Float64Array.of(-5001, -3000)];
    const { gamma, logLikelihood } = eStep(likelihoods, Int32Array.of(0, 0), 1, [0.5, 0.5]);
    expect(gamma[0][0]).toBeCloseTo(1 / (1 + Math.exp(-1)), 12);
    expect(logLikelihood).toBeCloseTo(-8000 + Math.log(0.5 * (1 + Math.exp(-1))), 9);
  });

  it('temperature 0 gives all to the best type, large ones spread', () => {
    const likelihoods = [Float64Array.of(-1), Float64Array.of(-3)];
    const at = (t: number) => eStep(likelihoods, Int32Array.of(0), 1, [0.5, 0.5], t).gamma.map((g) => g[0]);
    expect(at(0)).toEqual([1, 0]);
    expect(at(2)[0]).toBeCloseTo(1 / (1 + Math.exp(-1)), 12);
  });

  it('an annotator without votes has the weights of the types', () => {
    const { gamma } = eStep([new Float64Array(0), new Float64Array(0)], new Int32Array(0), 1, [0.25, 0.75]);
    expect(gamma[0][0]).toBeCloseTo(0.25, 12);
    expect(gamma[1][0]).toBeCloseTo(0.75, 12);
  });
});

describe('EM', () => {
  const random = new Random(11);
  const utilities = [normal(random, 8, 2), normal(random, 8, 2)];

  it.each([
    'random',
    'k-means',
  ] as const)('finds planted types from %s starts; the likelihood never falls', async (init) => {
    const { votes, type } = planted(utilities, { annotators: 80, questions: 15, sizes: [2, 4] });
    const fit = await fitMixture(mixtureProblem(votes, 8), { types: 2, init, restarts: 3, l2: 0.01 });
    expect(adjustedRandIndex(hardTypes(fit.posterior.gamma), type)).toBeGreaterThan(0.95);
    expect(fit.starts).toHaveLength(3);
    for (const { logLikelihood } of fit.starts) expect(logLikelihood).toBeLessThan(fit.logLikelihood + 1);
    expect(fit.rounds).toBeGreaterThan(0);
    expect(fit.logLikelihood).toBeGreaterThan(fit.pooled.logLikelihood);
  });

  it.each([
    ['exact', {}],
    ['hard', { temperature: 0 }],
    ['tempered', { temperature: 3 }],
    ['equal weights', { weights: 'uniform' }],
  ] as const)('%s EM raises what it maximises in every round', async (_, options) => {
    const { votes } = planted(utilities, { annotators: 40, questions: 4, sizes: [3] });
    const seen: number[] = [];
    const fit = await fitMixture(mixtureProblem(votes, 8), {
      types: 3,
      restarts: 1,
      ...options,
      onRound: (_start, _round, posterior) => seen.push(posterior.objective),
    });
    if (fit.reseeded === 0)
      for (let i = 1; i < seen.length; i++) expect(seen[i]).toBeGreaterThanOrEqual(seen[i - 1] - 1e-7);
    expect(fit.weights.reduce((a, b) => a + b)).toBeCloseTo(1, 9);
    if (_ === 'equal weights') expect(fit.weights[0]).toBe(1 / 3);
  });

  it('chooses two types where there are two, and one where all are alike', async () => {
    const two = planted(utilities, { annotators: 60, questions: 10, sizes: [3] });
    const choice = await chooseTypes(mixtureProblem(two.votes, 8), [1, 2, 3], { restarts: 3 });
    expect(choice.types).toBe(2);
    const heldOut = choice.criteria.map((c) => c.held_out_log_likelihood);
    expect(heldOut[1]).toBeGreaterThan(heldOut[0]);
    const one = planted([utilities[0]], { annotators: 60, questions: 10, sizes: [3] });
    expect((await chooseTypes(mixtureProblem(one.votes, 8), [1, 2], { restarts: 3 })).types).toBe(1);
  });

  it('an empty type is started again, and said so', async () => {
    const { votes } = planted(utilities, { annotators: 30, questions: 10, sizes: [3] });
    const notes: string[] = [];
    const ones = new Float64Array(30).fill(1);
    const init = [ones, new Float64Array(30)];
    const fit = await fitMixture(mixtureProblem(votes, 8), { types: 2, init, l2: 0.01, onNote: (n) => notes.push(n) });
    expect(notes.join()).toMatch(/type 2 lost all annotators in round 0/);
    expect(fit.reseeded).toBe(1);
    expect(fit.weights[1]).toBeGreaterThan(0.2);
  });

  it('types that start equal stay one, which is seen', async () => {
    const { votes } = planted(utilities, { annotators: 30, questions: 5, sizes: [3] });
    const half = new Float64Array(30).fill(0.5);
    const problem = mixtureProblem(votes, 8);
    const fit = await fitMixture(problem, { types: 2, init: [half, half.slice()] });
    expect(collapsedTypes(problem, fit.rewards)[0]?.types).toEqual([0, 1]);
  });

  it('refuses more types than annotators', async () => {
    const { votes } = planted(utilities, { annotators: 2 });
    await expect(fitMixture(mixtureProblem(votes, 8), { types: 3 })).rejects.toThrow(
      /em.types: found 3.*annotators, 2/,
    );
  });

  it('J = 3 identifies one-question annotators', async () => {
    const draws = new Random(21);
    const N = 4000;
    const features = Float32Array.from(normal(draws, N * 6));
    const items = new Int32Array(N * 3);
    for (let v = 0; v < N; v++) {
      const sign = v % 2 ? 2 : -2;
      const keys = [0, 1, 2].map((j) => sign * features[(3 * v + j) * 2] - Math.log(-Math.log(1 - draws.uniform())));
      items.set(
        [0, 1, 2].sort((a, b) => keys[b] - keys[a]).map((j) => 3 * v + j),
        3 * v,
      );
    }
    const votes: Votes = {
      annotators: Array.from({ length: N }, (_, i) => `u${i}`),
      annotator: Int32Array.from({ length: N }, (_, i) => i),
      offsets: Int32Array.from({ length: N + 1 }, (_, i) => 3 * i),
      items,
      stages: new Int32Array(N).fill(2),
      weights: new Float64Array(N).fill(1),
      margins: new Float64Array(N),
      rows: new Int32Array(N),
      m: N,
    };
    const fit = await fitMixture(mixtureProblem(votes, { features, n: 3 * N, d: 2 }), { types: 2, restarts: 3 });
    for (const { rewards } of fit.starts) {
      const [low, high] = [...rewards].sort((a, b) => a[0] - b[0]);
      expect(Math.abs(low[0] + 2)).toBeLessThan(0.2);
      expect(Math.abs(high[0] - 2)).toBeLessThan(0.2);
    }
  });
});

describe('adjusted Rand index', () => {
  it('is 1 for the same partition under other names, near 0 by chance, and as in the textbook', () => {
    expect(adjustedRandIndex([0, 0, 1, 1], ['b', 'b', 'a', 'a'])).toBe(1);
    // Hubert and Arabie's form by hand: n = 6, Σ C(n_ij, 2) = 2, rows 6, columns 3, of 15 pairs.
    expect(adjustedRandIndex([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2])).toBeCloseTo((2 - 1.2) / (4.5 - 1.2), 12);
    const random = new Random(1);
    const draw = () => Array.from({ length: 4000 }, () => random.below(3));
    expect(Math.abs(adjustedRandIndex(draw(), draw()))).toBeLessThan(0.01);
    expect(adjustedRandIndex([1, 1], [1, 1])).toBe(1);
    expect(() => adjustedRandIndex([1], [1, 2])).toThrow(/1 and 2/);
  });
});

describe('method em-reward', () => {
  let dir: string;
  const random = new Random(31);
  const n = 12;
  const features = Array.from({ length: n }, () => normal(random, 3));
  const utilities = [features.map((x) => 3 * x[0] + x[1]), features.map((x) => -3 * x[0] + x[1])];
  const { votes, type } = planted(utilities, { annotators: 40, questions: 10, sizes: [2, 3] });
  const row = (v: number, name = votes.annotators[votes.annotator[v]]) => {
    const ids = [...votes.items.subarray(votes.offsets[v], votes.offsets[v + 1])].map((i) => `i${i}`);
    return ids.length === 2
      ? { chosen: ids[0], rejected: ids[1], annotator: name }
      : { responses: ids, ranking: ids.map((_, i) => i), annotator: name };
  };
  const lines = (rows: object[]) => rows.map((r) => `${JSON.stringify(r)}\n`).join('');
  const config = (more: object): Config =>
    ({
      method: 'em-reward',
      model: 'features',
      data: { train: join(dir, 'rows.jsonl'), items: join(dir, 'items.jsonl') },
      features: { l2: 0.1 },
      ...more,
    }) as Config;

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'em-'));
    await writeFile(join(dir, 'items.jsonl'), lines(features.map((x, i) => ({ id: `i${i}`, features: x }))));
    await writeFile(join(dir, 'rows.jsonl'), lines(Array.from({ length: votes.m }, (_, v) => row(v))));
    const some = [...Array(votes.m).keys()].filter((v) => votes.annotator[v] < 6);
    await writeFile(join(dir, 'new.jsonl'), lines(some.map((v) => row(v, `new, ${votes.annotator[v]}`))));
  });
  afterAll(() => rm(dir, { recursive: true }));

  it('writes types and responsibilities; eval and assign use them', async () => {
    const run = join(dir, 'run');
    const summary = (await train(config({ em: { types: 2, restarts: 3 }, output: run }), { quiet: true })) as EmSummary;
    const types = readTypes(join(run, 'types.safetensors'));
    expect(types.rewards.map((r) => r.length)).toEqual([3, 3]);
    expect(types.weights[0] + types.weights[1]).toBeCloseTo(1, 6);
    const known = await readResponsibilities(join(run, 'responsibilities.csv'));
    expect(known.size).toBe(40);
    expect(adjustedRandIndex([...known.values()].map(likeliest), type)).toBeGreaterThan(0.9);
    expect(summary.em.one_type_is_enough).toBe(false);
    expect(summary.em.description[0].features[0].feature).toBe(0);
    const metrics = (await readFile(join(run, 'metrics.jsonl'), 'utf8'))
      .trim()
      .split('\n')
      .map((l) => JSON.parse(l));
    expect((await readdir(run)).filter((name) => name.startsWith('events.out.tfevents.'))).toHaveLength(1);
    await train(config({ em: { types: 2, restarts: 3 }, output: run }), { quiet: true, resume: true });
    const events = (await readdir(run)).filter((name) => name.startsWith('events.out.tfevents.'));
    const forgotten = await Promise.all(events.map(async (name) => forgetsFrom(await readFile(join(run, name)))));
    expect(forgotten.sort()).toEqual([0, null]);
    for (let i = 1; i < metrics.length; i++)
      expect(metrics[i].log_likelihood).toBeGreaterThanOrEqual(metrics[i - 1].log_likelihood - 1e-3);
    expect(metrics.at(-1).log_likelihood).toBeCloseTo(summary.em.log_likelihood, 12);

    const stop = { signal: new AbortController().signal, flag: new Int32Array(1) } as never;
    const evaluation = await evalCommand({ run, adapters: [], data: [join(dir, 'rows.jsonl')], stop } as never);
    expect(evaluation.overall.rows).toBe(400);
    expect(evaluation.overall.accuracy).toBeGreaterThan(0.8);
    expect(evaluation.overall.log_likelihood).toBeGreaterThan(summary.em.log_likelihood);
    expect(Object.keys(evaluation.annotators)).toHaveLength(40);

    const assigned = await assignVotes({ run, data: [join(dir, 'new.jsonl')] });
    expect(assigned.map((line) => line.annotator)).toContain('new, 5');
    for (const line of assigned) {
      const same = known.get(`u${line.annotator.split(' ')[1]}`)!;
      line.probabilities.forEach((p, k) => {
        expect(p).toBeCloseTo(same[k], 4);
      });
    }
    await writeFile(join(dir, 'again.csv'), responsibilitiesCsv(assigned));
    expect((await readResponsibilities(join(dir, 'again.csv'))).get('new, 5')).toHaveLength(2);
    expect(assignTypes(votes, [new Float64Array(n), new Float64Array(n)], [0.3, 0.7])[0].probabilities[1]).toBeCloseTo(
      0.7,
      9,
    );
  });

  it('plain items need no table; a list of types is chosen from', async () => {
    const run = join(dir, 'plain');
    const summary = (await train(
      config({ data: { train: join(dir, 'rows.jsonl') }, em: { types: [1, 2], restarts: 2 }, output: run }),
      { quiet: true },
    )) as EmSummary;
    expect(summary.em.types).toBe(2);
    expect(summary.em.criteria).toHaveLength(2);
    expect(readTypes(join(run, 'types.safetensors')).items).toHaveLength(n);
  });

  it('says that one type is enough where all are alike', async () => {
    const alike = planted([utilities[0]], { annotators: 30, questions: 8, sizes: [3] }).votes;
    const rows = Array.from({ length: alike.m }, (_, v) => {
      const ids = [...alike.items.subarray(alike.offsets[v], alike.offsets[v + 1])].map((i) => `i${i}`);
      return { responses: ids, ranking: [0, 1, 2], annotator: alike.annotators[alike.annotator[v]] };
    });
    await writeFile(join(dir, 'alike.jsonl'), lines(rows));
    const notes: string[] = [];
    await train(
      config({
        data: { train: join(dir, 'alike.jsonl'), items: join(dir, 'items.jsonl') },
        em: { types: 2, restarts: 2 },
        output: join(dir, 'alike'),
      }),
      { quiet: true, onNote: (note) => notes.push(note) },
    );
    expect(notes.join('\n')).toMatch(/one type is enough/);
  });

  it.each([
    ['annotator,a,b\nu0,0.5,0.5\nnobody,1,0\n', /1 names have no votes, the first "nobody"/],
    ['annotator,a,b\nu0,0.5,0.5\n', /39 annotators have no line/],
    ['annotator,a,b\nu0,0,0\n', /csv, line 2: "u0" has probability 0 for every type/],
    ['annotator,a,b\nu0,x,1\n', /csv, line 2: a: found "x"/],
    ['annotator,a,b,c\nu0,1,0,0\n', /found 3 types, expected 2/],
    ['who,a\n', /expected annotator/],
  ])('a bad file to start from: %j', async (text, message) => {
    const init = join(dir, 'init.csv');
    await writeFile(init, text);
    await expect(train(config({ em: { types: 2, init }, output: join(dir, 'bad') }), { quiet: true })).rejects.toThrow(
      message,
    );
  });

  it('refuses rows without annotator, too many types and keys in the wrong place', async () => {
    const unnamed = join(dir, 'unnamed.jsonl');
    await writeFile(unnamed, lines([row(0), { chosen: 'i1', rejected: 'i2' }]));
    const data = { train: unnamed, items: join(dir, 'items.jsonl') };
    await expect(train(config({ data, output: join(dir, 'x') }), { quiet: true })).rejects.toThrow(
      /unnamed.jsonl, line 2: field "annotator"/,
    );
    await expect(train(config({ em: { types: 41 }, output: join(dir, 'y') }), { quiet: true })).rejects.toThrow(
      /em.types: found 41, expected at most the number of annotators, 40/,
    );
    await expect(
      train({ ...config({ em: {}, output: 'z' }), method: 'reward' } as Config, { quiet: true }),
    ).rejects.toThrow(/em: belongs to method em-dpo, em-reward/);
  });
});
