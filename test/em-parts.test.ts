// Parts that EM over features and over policies share: the E-step at its edges, starts, agreement, calibration.
import { describe, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
import type { Group } from '../lib/data/types.js';
import { agreementGraph, comparisonsOf, spectralClusters } from '../lib/em/agreement.js';
import { agreement, bestCriterion } from '../lib/em/criteria.js';
import { emptyType, eStep } from '../lib/em/estep.js';
import { fitMixture } from '../lib/em/features/mixture.js';
import { mixtureProblem } from '../lib/em/features/problem.js';
import { annotatorsOf } from '../lib/em/language/annotators.js';
import { collapsedPolicies, sampleRows } from '../lib/em/language/describe.js';
import { Rounds } from '../lib/em/language/rounds.js';
import { inPlaces, placesOf, stagesOf } from '../lib/em/language/votes.js';
import { agreementWithGroups, evaluateVotes, mixtureOutcome } from '../lib/em/outcome.js';
import { adjustedRandIndex } from '../lib/evaluation/rand-index.js';
import { expectedCalibrationError } from '../lib/evaluation/reliability.js';
import type { Votes } from '../lib/features/votes.js';
import { meanWeights } from '../lib/methods/em-dpo.js';
import { refuses } from './support/refuses.js';

const group = (more: Partial<Group> = {}): Group => ({
  index: 0,
  kind: 'pair',
  prompt: Int32Array.of(1),
  completions: [Int32Array.of(2), Int32Array.of(3)],
  weight: 1,
  origin: { file: 'x', line: 1 },
  ...more,
});

describe('the E-step at its edges', () => {
  it('takes votes that are next to impossible under every type', () => {
    const likelihoods = [Float64Array.of(-1e6, -3), Float64Array.of(-1e6 - 2, -3)];
    const { gamma, logLikelihood } = eStep(likelihoods, Int32Array.of(0, 1), 2, [0.5, 0.5]);
    expect(gamma[0][0]).toBeCloseTo(1 / (1 + Math.exp(-2)), 10);
    expect(gamma[0][1]).toBeCloseTo(0.5, 12);
    expect(logLikelihood).toBeCloseTo(-1e6 - 3 + Math.log((1 + Math.exp(-2)) / 2), 6);
  });

  it('a vote of probability 0 under one type rules it out; under all, it tells nothing', () => {
    const none = Number.NEGATIVE_INFINITY;
    const likelihoods = [Float64Array.of(none, none), Float64Array.of(-1, none)];
    for (const temperature of [1, 2, 0]) {
      const { gamma } = eStep(likelihoods, Int32Array.of(0, 1), 2, [0.7, 0.3], temperature);
      expect([gamma[0][0], gamma[1][0]]).toEqual([0, 1]);
      expect([gamma[0][1], gamma[1][1]]).toEqual([0.7, 0.3]);
    }
  });

  it('gives an empty type those whom the mixture explains worst', () => {
    const posterior = {
      gamma: [Float64Array.of(1, 1, 1, 1), new Float64Array(4)],
      evidence: Float64Array.of(-1, -9, -2, -8),
      objective: 0,
      logLikelihood: 0,
    };
    // Annotator 1 has three votes, so that 3 is worse off per vote.
    expect(emptyType(posterior, Int32Array.of(0, 1, 1, 1, 2, 3))).toBe(1);
    expect([...posterior.gamma[1]]).toEqual([0, 0, 0, 1]);
    expect(
      emptyType({ ...posterior, gamma: [Float64Array.of(1, 0, 0, 0), Float64Array.of(0, 1, 1, 1)] }, Int32Array.of(0)),
    ).toBe(-1);
    expect([...meanWeights(posterior.gamma)]).toEqual([0.75, 0.25]);
  });
});

describe('votes as places', () => {
  it('puts those not ranked last, and counts choices', () => {
    const three = [Int32Array.of(2), Int32Array.of(3), Int32Array.of(4)];
    const ranking = group({ kind: 'ranking', completions: three, ranking: [2, 0] });
    expect(placesOf(ranking)).toEqual([2, 0, 1]);
    expect([...inPlaces(ranking, [10, 20, 30])]).toEqual([30, 10, 20]);
    expect(stagesOf(ranking, false)).toBe(2);
    expect(stagesOf(ranking, true)).toBe(1);
    expect(stagesOf(group({ kind: 'ranking', completions: three, ranking: [1, 0, 2] }), false)).toBe(2);
    expect(stagesOf(group(), false)).toBe(1);
  });

  it('refuses a row of nobody', async () => {
    await refuses(
      () => annotatorsOf([group({ annotator: 'a' }), group({ origin: { file: 'f', line: 7 } })]),
      'BAD_DATA',
      /f:7/,
    );
  });

  it('types that choose alike have collapsed', () => {
    const vote = (...rewards: number[][]) => ({
      group: group(),
      rewards: rewards.map((r) => Float64Array.from(r)),
      stages: 1,
    });
    const votes = [vote([1, 0], [1.01, 0], [0, 1]), vote([0, 2], [0, 2], [2, 0])];
    expect(collapsedPolicies(votes, 3).map(({ types }) => types)).toEqual([[0, 1]]);
    expect(sampleRows(Array.from({ length: 5000 }, (_, i) => i))).toHaveLength(1024);
  });

  it('a mixture predicts by the sum of its types', () => {
    const vote = { group: group(), rewards: [Float64Array.of(2, 0), Float64Array.of(0, 1)], stages: 1 };
    const { logLikelihood, accuracy, margin } = mixtureOutcome(vote, [0.6, 0.4]);
    const p = 0.6 / (1 + Math.exp(-2)) + 0.4 / (1 + Math.exp(1));
    expect(logLikelihood).toBeCloseTo(Math.log(p), 10);
    expect(margin).toBeCloseTo(Math.log(p / (1 - p)), 10);
    expect(accuracy).toBe(1);
    const far = mixtureOutcome({ ...vote, rewards: [Float64Array.of(900, 0), Float64Array.of(0, 1)] }, [1, 0]);
    expect([far.margin, far.accuracy]).toEqual([900, 1]);
    const wrong = mixtureOutcome({ ...vote, rewards: [Float64Array.of(0, 900), Float64Array.of(0, 800)] }, [0.5, 0.5]);
    expect(wrong.logLikelihood).toBeCloseTo(-800 + Math.log(0.5), 9);
    expect(wrong.margin).toBeCloseTo(-800 + Math.log(0.5), 9);
    const { overall, types } = evaluateVotes(
      [{ ...vote, group: group({ annotator: 'a', group: 'g' }) }],
      [0.6, 0.4],
      new Map([['a', [0, 1]]]),
    );
    expect(overall.log_likelihood).toBeCloseTo(-Math.log1p(Math.exp(1)), 10);
    expect(Object.keys(types!)).toEqual(['type_2']);
  });
});

describe('who agrees with whom', () => {
  const random = new Random(5);
  const truth = Array.from({ length: 24 }, (_, u) => u % 3);
  // Three orders of six things; everyone compares nine pairs and errs once in ten.
  const orders = [0, 1, 2].map((k) => Array.from({ length: 6 }, (_, i) => (i * (k + 1) + 2 * k * k) % 7));
  const comparisons = truth.flatMap((type, u) =>
    Array.from({ length: 9 }, (_, n) => {
      const [a, b] = [(u + n) % 6, (u + n + 1 + (n % 5)) % 6];
      const first = orders[type][a] > orders[type][b] === random.uniform() < 0.9;
      return comparisonsOf(u, 'q', first ? [`${a}`, `${b}`] : [`${b}`, `${a}`], 1);
    }).flat(),
  );

  it('counts agreements over the comparisons that two share', () => {
    const one = [
      ...comparisonsOf(0, 'q', ['a', 'b'], 1),
      ...comparisonsOf(1, 'q', ['b', 'a'], 1),
      ...comparisonsOf(2, 'q', ['a', 'b', 'c'], 1),
      ...comparisonsOf(3, 'other', ['a', 'b'], 1),
    ];
    const { weights, shared } = agreementGraph(one, 4);
    expect([...shared]).toEqual([2, 2, 2, 0]);
    expect([...weights]).toEqual([0, -0.5, 0.5, 0, -0.5, 0, -0.5, 0, 0.5, -0.5, 0, 0, 0, 0, 0, 0]);
    expect(comparisonsOf(0, 'q', ['a', 'b', 'c'], 2)).toHaveLength(3);
  });

  it('finds three groups from it', () => {
    const { weights } = agreementGraph(comparisons, truth.length);
    expect(adjustedRandIndex(spectralClusters(weights, truth.length, 3, random), truth)).toBeGreaterThan(0.8);
  });

  it('starts EM over plain items too, and needs shared comparisons', async () => {
    const items = Int32Array.from({ length: 2 * 20 * 12 }, () => 0);
    const annotator = Int32Array.from({ length: 20 * 12 }, (_, v) => Math.floor(v / 12));
    annotator.forEach((u, v) => {
      const [a, b] = [random.below(5), 5 + random.below(5)];
      items.set(u % 2 === 0 ? [a, b] : [b, a], 2 * v);
    });
    const m = annotator.length;
    const votes: Votes = {
      annotators: Array.from({ length: 20 }, (_, u) => `u${u}`),
      annotator,
      offsets: Int32Array.from({ length: m + 1 }, (_, v) => 2 * v),
      items,
      stages: new Int32Array(m).fill(1),
      weights: new Float64Array(m).fill(1),
      margins: new Float64Array(m),
      rows: Int32Array.from(annotator.keys()),
      m,
    };
    const fit = await fitMixture(mixtureProblem(votes, 10), {
      types: 2,
      init: 'spectral',
      restarts: 1,
      l2: 1,
      rounds: 5,
    });
    const found = votes.annotators.map((_, u) => Number(fit.posterior.gamma[0][u] < 0.5));
    expect(
      adjustedRandIndex(
        found,
        found.map((_, u) => u % 2),
      ),
    ).toBe(1);
    const apart = { ...votes, items: Int32Array.from({ length: 2 * m }, (_, i) => i) };
    const problem = mixtureProblem(apart, 2 * m);
    await refuses(
      () => fitMixture(problem, { types: 2, init: 'spectral', l2: 1 }),
      'BAD_DATA',
      /compared the same items/,
    );
  });
});

describe('how well types are known', () => {
  it('calibration is the distance of certainty and being right', () => {
    expect(expectedCalibrationError([0.95, 0.95, 0.55, 0.55], [true, true, true, false])).toBeCloseTo(0.05, 10);
    expect(expectedCalibrationError([1, 1], [false, false])).toBe(1);
    expect(expectedCalibrationError([], [])).toBe(0);
    const known = new Map([
      ['a', [0.9, 0.1]],
      ['b', [0.8, 0.2]],
      ['c', [0.3, 0.7]],
      ['d', [0.6, 0.4]],
    ]);
    const rows = ['a', 'b', 'c', 'd', 'e'].map((annotator, i) => ({ annotator, group: ['x', 'x', 'y', 'y', 'y'][i] }));
    const { adjusted_rand_index: index, responsibility_ece: ece } = agreementWithGroups(rows, known)!;
    expect(index).toBeCloseTo(adjustedRandIndex(['x', 'x', 'y', 'y'], [0, 0, 1, 0]), 12);
    expect(ece).toBeCloseTo((0.1 + 0.2 + 0.3 + 0.6) / 4, 10);
    expect(agreementWithGroups([{ annotator: 'a' }], known)).toBeUndefined();
  });

  it('chooses by what is asked for', () => {
    const line = (types: number, bic: number, held: number, stability: number) => ({
      types,
      log_likelihood: 0,
      parameters: 1,
      bic,
      held_out_log_likelihood: held,
      stability,
    });
    const lines = [line(1, 30, -0.7, 1), line(2, 20, -0.5, 0.9), line(3, 25, -0.4, 0.9), line(4, 40, Number.NaN, 0.2)];
    expect(bestCriterion(lines, 'bic')).toBe(1);
    expect(bestCriterion(lines, 'held_out')).toBe(2);
    expect(bestCriterion(lines, 'stability')).toBe(2);
    expect(bestCriterion([line(1, 1, 1, 1), line(2, 1, 1, 0.3)], 'stability')).toBe(0);
    const gamma = [Float64Array.of(1, 0, 1), Float64Array.of(0, 1, 0)];
    expect(agreement({ names: ['a', 'b', 'c'], gamma }, { names: ['c', 'b', 'z'], gamma: [gamma[1], gamma[0]] })).toBe(
      1,
    );
  });
});

describe('rounds', () => {
  const train = {
    batch_size: 3,
    seed: 1,
    shuffle: true,
    learning_rate: 1,
    schedule: 'linear',
    warmup: 0,
    min_learning_rate_ratio: 0,
  };
  const annotators = { names: ['a', 'b'], of: Int32Array.of(0, 0, 0, 0, 1, 1, 1), votes: Int32Array.of(4, 3) };
  const rounds = (em: object) =>
    new Rounds(annotators, { folds: 1, m_epochs: 1, rounds: 4, restart: false, ...em }, train as never);

  it('go over every row once in an epoch, in another order each', () => {
    const r = rounds({ m_epochs: 2 });
    expect(r.batches(0)).toBe(6);
    const epoch = (round: number, first: number) => [0, 1, 2].flatMap((b) => [...r.batch(round, first + b)]);
    for (const rows of [epoch(0, 0), epoch(0, 3), epoch(1, 0)]) expect([...rows].sort()).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(epoch(0, 0)).not.toEqual(epoch(0, 3));
    expect(r.steps).toBe(24);
  });

  it('leave out of the M-step what the E-step looks at', () => {
    const r = rounds({ folds: 2 });
    for (const round of [0, 1]) {
      const rows = Array.from({ length: r.batches(round) }, (_, b) => [...r.batch(round, b)]).flat();
      expect(rows.every((row) => r.foldOf(row) !== round)).toBe(true);
      expect(rows).toHaveLength(round === 0 ? 4 : 3);
    }
    expect([...annotators.of.keys()].map((row) => r.foldOf(row))).toEqual([0, 1, 0, 1, 1, 0, 1]);
  });

  it('spread annotators of one row over the folds', () => {
    const single = {
      names: ['a', 'b', 'c', 'd', 'e'],
      of: Int32Array.of(0, 1, 2, 3, 4),
      votes: Int32Array.of(1, 1, 1, 1, 1),
    };
    const r = new Rounds(single, { folds: 3, m_epochs: 1, rounds: 4, restart: false }, train as never);
    expect([0, 1, 2, 3, 4].map((row) => r.foldOf(row))).toEqual([0, 1, 2, 0, 1]);
  });

  it('the rate falls over the run, or with restarts over each round', () => {
    expect(rounds({}).learningRate(0)).toBe(1);
    expect(rounds({}).learningRate(6)).toBeCloseTo(0.5, 12);
    expect(rounds({ restart: true }).learningRate(6)).toBe(1);
    expect(rounds({ restart: true }).learningRate(8)).toBeCloseTo(1 / 3, 12);
  });
});
