import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { optimisticHedge, solveGame } from '../lib/aggregation/game.js';
import { regretMatrix, rewardMatrix, times, withZeroRow } from '../lib/aggregation/regret.js';
import { aggregate, alphaAggregate } from '../lib/aggregation/rules.js';
import { Random } from '../lib/base/random.js';
import { run } from '../lib/cli/program.js';

const random = new Random(7);
const entry = () => 2 * random.uniform() - 1;
const matrix = (rows: number, columns: number, of = entry) =>
  Array.from({ length: rows }, () => Array.from({ length: columns }, of));

function onSimplex(w: number[]) {
  expect(Math.min(...w)).toBeGreaterThanOrEqual(0);
  expect(w.reduce((a, b) => a + b, 0)).toBeCloseTo(1, 12);
}

describe('matrix games', () => {
  it('the linear program meets its dual on 1,000 random matrices, ties and degenerate ones included', () => {
    for (let n = 0; n < 1000; n++) {
      const K = 2 + (n % 7);
      const of = n % 3 === 0 ? () => random.below(3) - 1 : entry;
      const M = n % 2 ? withZeroRow(matrix(K, K, of)) : matrix(K, 1 + random.below(8), of);
      const { w, p, value } = solveGame(M);
      onSimplex(w);
      onSimplex(p);
      const guaranteed = Math.min(...M[0].map((_, j) => M.reduce((sum, row, i) => sum + p[i] * row[j], 0)));
      expect(value - guaranteed).toBeLessThan(1e-9);
      expect(Math.max(...times(M, w))).toBeCloseTo(value, 12);
    }
  });

  it('optimistic Hedge is within .01 of the linear program on 1,000 random regret matrices, K from 2 to 8', () => {
    let worst = 0;
    for (let n = 0; n < 1000; n++) {
      const K = 2 + (n % 7);
      const R = matrix(K, K);
      // Every other one as regrets are: nothing to regret under a type's own policy.
      if (n % 2) for (let k = 0; k < K; k++) R[k][k] = 0;
      const M = withZeroRow(R);
      const gap = optimisticHedge(M).value - solveGame(M).value;
      expect(gap).toBeGreaterThan(-1e-9);
      worst = Math.max(worst, gap);
    }
    expect(worst).toBeLessThan(0.01);
  });

  it('scales: a matrix of 1e6 and of 1e-6 has the same mixture', () => {
    const M = matrix(4, 3);
    const { w, value } = solveGame(M);
    for (const scale of [1e6, 1e-6]) {
      const other = solveGame(M.map((row) => row.map((x) => x * scale)));
      expect(other.value / scale).toBeCloseTo(value, 9);
      other.w.forEach((x, j) => {
        expect(x).toBeCloseTo(w[j], 9);
      });
    }
  });
});

describe('rules', () => {
  const utilities = [
    [0, 0.01, 0.02],
    [0, 10, 1],
  ];
  const argmax = (w: number[]) => w.indexOf(Math.max(...w)) + 1;

  it('the example: min-max regret takes response 2, max-min response 3', () => {
    expect(argmax(aggregate(utilities, 1, 'min-max-regret').weights)).toBe(2);
    expect(argmax(aggregate(utilities, 1, 'min-max-regret', { solver: 'hedge' }).weights)).toBe(2);
    const fair = aggregate(utilities, 1, 'max-min');
    expect(fair.weights[2]).toBeCloseTo(1, 9);
    expect(fair.worst_regret).toBeCloseTo(9, 9);
  });

  it('the same with a policy for each type', () => {
    const L = [
      [0.02, 0.01],
      [1, 10],
    ];
    const { weights, regrets, worst_regret } = aggregate(L, 2, 'min-max-regret');
    expect(weights[1]).toBeCloseTo(9 / 9.01, 9);
    expect(regrets[0]).toBeCloseTo(regrets[1], 9);
    expect(worst_regret).toBeCloseTo((2 * 0.01 * 9) / 9.01, 9);
    expect(aggregate(L, 2, 'max-min').weights[0]).toBeCloseTo(1, 9);
  });

  it('every rule is best at what it is for', () => {
    for (let n = 0; n < 30; n++) {
      const K = 2 + (n % 4);
      const L = matrix(K, K);
      const shares = Array.from({ length: K }, () => random.uniform());
      const total = shares.reduce((a, b) => a + b);
      const eta = shares.map((s) => s / total);
      const reward = rewardMatrix(L, 3);
      const regret = regretMatrix(reward);
      const goals = {
        'min-max-regret': (w: number[]) => -Math.max(0, ...times(regret, w)),
        'max-min': (w: number[]) => Math.min(...times(reward, w)),
        mean: (w: number[]) => alphaAggregate(times(reward, w), 0, eta),
        alpha: (w: number[]) => alphaAggregate(times(reward, w), -2, eta),
      };
      for (const [rule, goal] of Object.entries(goals)) {
        const mine = aggregate(L, 3, rule as keyof typeof goals, { alpha: -2, typeWeights: shares }).weights;
        onSimplex(mine);
        for (let m = 0; m < 200; m++) {
          const raw = Array.from({ length: K }, () => (-Math.log(1 - random.uniform())) ** (1 + (m % 3)));
          const sum = raw.reduce((a, b) => a + b);
          const other = raw.map((x) => x / sum);
          expect(goal(mine)).toBeGreaterThanOrEqual(goal(other) - 1e-6);
        }
      }
    }
  });

  it('α runs from the mean to the worst type', () => {
    const u = [1, 2, 6];
    const equal = [1 / 3, 1 / 3, 1 / 3];
    expect(alphaAggregate(u, 0, equal)).toBeCloseTo(3);
    expect(alphaAggregate(u, 1e-7, equal)).toBeCloseTo(3, 5);
    expect(alphaAggregate(u, -1e4, equal)).toBeCloseTo(1, 3);
    expect(alphaAggregate(u, Number.NEGATIVE_INFINITY, equal)).toBe(1);
    const L = matrix(3, 3);
    const limit = aggregate(L, 1, 'alpha', { alpha: Number.NEGATIVE_INFINITY });
    expect(Math.min(...limit.rewards)).toBeCloseTo(Math.min(...aggregate(L, 1, 'max-min').rewards), 9);
  });

  it('refuses what is no matrix, naming row and entry', () => {
    expect(() => aggregate([[0, 1], [2]], 1, 'mean')).toThrow(/row 2 has 1 entries, expected 2/);
    expect(() => aggregate([[0, Number.NaN]], 1, 'mean')).toThrow(/row 1, entry 2/);
    expect(() => aggregate([], 1, 'mean')).toThrow(/no rows/);
    expect(() => aggregate([[1]], 0, 'mean')).toThrow(/beta/);
    expect(() => aggregate([[1]], 1, 'mean', { typeWeights: [1, 2] })).toThrow(/type weights/);
  });
});

describe('pluralign aggregate', () => {
  let dir: string;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), 'aggregate-'));
  });
  afterAll(() => rm(dir, { recursive: true }));

  const command = async (...args: string[]) => {
    const written: string[] = [];
    const errors: string[] = [];
    const { stdout, stderr } = process;
    const [out, err] = [stdout.write, stderr.write];
    stdout.write = ((text: string) => written.push(text) > 0) as typeof stdout.write;
    stderr.write = ((text: string) => errors.push(text) > 0) as typeof stderr.write;
    try {
      return { status: await run(['aggregate', ...args]), out: written.join(''), err: errors.join('') };
    } finally {
      stdout.write = out;
      stderr.write = err;
    }
  };

  it('prints one JSON object', async () => {
    const file = join(dir, 'm.json');
    await writeFile(file, '{"L":[[0.02,0.01],[1,10]],"beta":1}');
    const { status, out } = await command('--matrix', file, '--rule', 'min-max-regret', '--json');
    expect(status).toBe(0);
    const result = JSON.parse(out);
    expect(result.weights).toHaveLength(2);
    expect(result.regrets).toHaveLength(2);
    expect(result.worst_regret).toBeCloseTo((0.01 * 9) / 9.01, 9);
    await command('--matrix', file, '--rule', 'mean', '--output', join(dir, 'mix'));
    expect(JSON.parse(await readFile(join(dir, 'mix', 'mixture.json'), 'utf8')).weights).toEqual([0, 1]);
  });

  it.each([
    ['{"L":[[1,2],[3]],"beta":1}', 'row 2 has 1 entries'],
    ['{"L":[[1,null]],"beta":1}', 'row 1, entry 2: found null'],
    ['{"beta":1}', 'found no "L"'],
    ['{"L":[[1]],"beta":-1}', 'beta: found -1'],
    ['{"L":[[1]],"betta":1}', '"betta"'],
    ['[', 'is no JSON'],
  ])('%s: status 2 and the reason', async (text, reason) => {
    const file = join(dir, 'bad.json');
    await writeFile(file, text);
    const { status, err } = await command('--matrix', file);
    expect(status).toBe(2);
    expect(err).toContain(reason);
  });

  it('needs exactly one of RUN and --matrix, and a rule there is', async () => {
    expect((await command()).status).toBe(2);
    expect((await command('--matrix', join(dir, 'none.json'))).err).toContain('no such file');
    expect((await command('--matrix', 'x', '--rule', 'fair')).err).toContain('min-max-regret');
  });
});
