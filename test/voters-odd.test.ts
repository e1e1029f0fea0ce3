// Voters that data really has: one vote, contradictions, nothing but ties, names spelt alike, fewer votes than rank.

import { describe, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
import { resolveConfig } from '../lib/config/index.js';
import { voterReport } from '../lib/data/voters.js';
import { pairedBootstrap, worstDecile } from '../lib/evaluation/bootstrap.js';
import { compareEvaluations } from '../lib/evaluation/compare.js';
import { sketch } from '../lib/evaluation/plane.js';
import { tieNu } from '../lib/losses/index.js';
import { train } from '../lib/training/train.js';
import { randomGroups } from './support/engine.js';
import { program, scratch, writeRows } from './support/runs.js';
import { opposed, tiny, type Vote, votersConfig } from './support/voters.js';

const { path } = scratch();
let count = 0;

/** A run over these rows: its notes and its summary. */
async function run(
  rows: Vote[],
  adapter: Parameters<typeof votersConfig>[2] = { share: 'b' },
  changes: Parameters<typeof votersConfig>[3] = undefined,
) {
  const file = writeRows(path(`rows-${count}.jsonl`), rows);
  const notes: string[] = [];
  const config = votersConfig(path(`run-${count++}`), { train: file, eval: file }, adapter, changes);
  const summary = await train(config, { quiet: true, onNote: (note) => notes.push(note) });
  return { notes: notes.join('\n'), summary, output: config.output! };
}

const many = opposed(['one', 'two']);
const tie = (row: Vote): Vote => ({ ...row, tie: true });

describe('a voter', () => {
  it('with one vote is trained and named in a count', async () => {
    const { notes, summary } = await run([...many, { ...many[0], annotator: 'once' }]);
    expect(notes).toContain('1 of 3 annotators have one vote');
    expect(summary.data.voters).toMatchObject({ annotators: 3, oneVote: 1, contradicting: 0 });
    expect(summary.eval!.annotators.once.rows).toBe(1);
  });

  it('who contradicts himself is counted, and every vote kept', async () => {
    const back = many.slice(0, 2).map((row) => ({ ...row, chosen: row.rejected, rejected: row.chosen }));
    const { notes, summary } = await run([...many, ...back]);
    expect(notes).toContain('1 of 2 annotators contradict themselves on 2 couples of completions');
    expect(summary.data.voters).toMatchObject({ contradicting: 1, contradictions: 2 });
    expect((summary.data.tokens as { groups: number }).groups).toBe(14);
  });

  it('with fewer votes than the rank is pointed out', async () => {
    const { notes } = await run(many, { share: 'b', r: 7 });
    expect(notes).toContain('2 of 2 annotators have fewer votes than the rank 7 of their adapter');
    expect((await run(many, { share: 'b', r: 6 })).notes).not.toContain('fewer votes');
  });

  it('whose name differs only in spacing or Unicode form is pointed out, and has an adapter for each', async () => {
    const names = ['Zoë', 'Zoe\u0308', ' Zoë'];
    const { notes, summary } = await run(opposed(names));
    expect(notes).toMatch(/differ only in how they are spelt/);
    expect(summary.data.voters).toMatchObject({ annotators: 3 });
  });

  it('called as the generic adapter, or by odd characters, is a voter like any other', async () => {
    const names = ['default', 'a@b', 'annotator x', '🌊/..\n'];
    const { summary, output } = await run(opposed(names));
    expect(Object.keys(summary.eval!.annotators).sort()).toEqual([...names].sort());
    const out = path('odd');
    const argv = names.flatMap((name) => ['--annotator', name]);
    const { status, stdout, stderr } = await program('export', '--run', output, ...argv, '--output', out, '--json');
    expect(status, stderr).toBe(0);
    const folders = Object.values(JSON.parse(stdout).adapters as Record<string, string>);
    expect(new Set(folders).size).toBe(4);
    for (const folder of folders) expect(folder.slice(out.length + 1)).toMatch(/^[\w%-]+$/);
  });
});

describe('ties', () => {
  const mixed = [...many, ...many.slice(0, 3).map(tie)];

  it('are left out and counted where the loss has no place for them', async () => {
    const { notes, summary, output } = await run([...mixed, ...opposed(['tied']).map(tie)]);
    const ties = writeRows(path('ties.jsonl'), many.map(tie));
    const refused = await program('eval', '--run', output, '--data', ties, '--dtype', 'float32');
    expect(refused).toMatchObject({ status: 2, stderr: expect.stringMatching(/ties\.jsonl: every row is a tie/) });
    expect(notes).toContain('9 rows are ties and were left out; loss.ties has likelihoods that use them');
    expect(notes).toContain('1 annotators have nothing but ties and no vote left');
    expect(summary.data.voters).toMatchObject({ annotators: 2 });
    expect(summary.data.train).toMatchObject({ ties: 9 });
    await expect(run(many.map(tie))).rejects.toMatchObject({
      code: 'BAD_DATA',
      message: expect.stringMatching(/every row is a tie; see loss\.ties/),
    });
  });

  it.each([
    ['reward', 'rao_kupper'],
    ['reward', 'davidson'],
    ['dpo', 'rao_kupper'],
    ['dpo', 'davidson'],
  ] as const)('%s, %s: are learnt from, a voter with nothing else too', async (method, ties) => {
    const agreed = [...opposed(['one']), ...opposed(['two'])];
    const rows = [...agreed, ...agreed.slice(0, 3).map(tie), ...opposed(['tied']).map(tie)];
    const changes = { method, loss: { ties, beta: 0.5 }, train: { steps: 60, batch_size: 9, learning_rate: 0.02 } };
    const { notes, summary, output } = await run(rows, { share: 'b', r: 4 }, changes);
    expect(notes).toContain('1 of 3 annotators have nothing but ties');
    const { tied, two } = summary.eval!.annotators;
    expect(tied.ties).toBe(6);
    expect(tied.log_likelihood).toBeGreaterThan(summary.eval_generic!.annotators.tied.log_likelihood);
    expect(two.accuracy).toBe(1);
    expect(summary.tie_nu).toBeCloseTo(tieNu(ties, 9 / 21), 12);
    // The same of the run from outside, ν as it was.
    const { stdout } = await program(
      'eval',
      '--run',
      output,
      '--data',
      writeRows(path('again.jsonl'), rows),
      '--dtype',
      'float32',
      '--json',
    );
    const again = JSON.parse(stdout);
    expect(again.overall.log_likelihood).toBeCloseTo(summary.eval!.overall.log_likelihood, 6);
    expect(again.overall.ties).toBe(9);
  });

  it('go with losses that have a likelihood for them only', () => {
    const config =
      (loss: object, method: 'dpo' | 'reward' = 'dpo') =>
      () =>
        resolveConfig({ ...votersConfig(path('x'), { train: 'a.jsonl' }, {}, { loss }), method });
    expect(config({ ties: 'davidson', type: 'ipo' })).toThrow(/loss\.ties: davidson needs method reward, or dpo with/);
    expect(config({ ties: 'davidson', label_smoothing: 0.1 })).toThrow(/goes with neither label_smoothing/);
    expect(config({ ties: 'rao_kupper', tie_nu: 1 })).toThrow(/expected a number above 1/);
    expect(config({ tie_nu: 2 })).toThrow(/loss\.tie_nu: belongs to loss\.ties/);
    expect(config({ ties: 'rao_kupper', tie_nu: 3 })()).toMatchObject({ loss: { tie_nu: 3 } });
  });
});

describe('settings that do not go together are refused', () => {
  const config = (adapter: object, method: 'dpo' | 'reward' | 'sft' = 'reward') =>
    resolveConfig({ method, model: tiny.model, data: { train: 'a.jsonl' }, adapter, output: path('x') });
  it.each([
    [{ init: 'warm-up' }, 'reward', /adapter\.init: warm-up needs adapter\.per: annotator/],
    [{ share: 'b', init_share: 0.3 }, 'reward', /adapter\.init_share: belongs to adapter\.init/],
    [{ penalty: 1 }, 'reward', /adapter\.penalty: needs adapter\.per: annotator/],
    [{ per: 'annotator' }, 'sft', /adapter\.per: annotator needs method dpo or reward/],
  ] as const)('%j, %s', (adapter, method, message) => {
    expect(() => config(adapter, method)).toThrow(message);
  });

  it('and what is left out is filled in', () => {
    expect(config({ share: 'b' }).adapter).toMatchObject({ per: 'annotator', init: 'shared', init_share: null });
    expect(config({ share: 'b', per: 'all' }).adapter).toMatchObject({ per: 'all' });
    expect(config({ share: 'a', init: 'warm-up' }, 'dpo').adapter).toMatchObject({ init_share: 0.2 });
    expect(config({ per: 'annotator', init: 'global' }).adapter).toMatchObject({ init_share: 0.4, share: 'none' });
    expect(config({}).adapter).toMatchObject({ per: 'all' });
  });
});

describe('reports', () => {
  it('count rankings by the couples that they order', () => {
    const [group] = randomGroups(1, 50);
    const texts = [1, 2, 3].map((id) => Int32Array.of(id));
    const ranking = (order: number[]) =>
      ({ ...group, kind: 'ranking', completions: texts, ranking: order, annotator: 'u' }) as const;
    expect(voterReport([ranking([0, 1, 2]), ranking([0, 1])]).contradictions).toBe(0);
    expect(voterReport([ranking([0, 1, 2]), ranking([1])]).contradictions).toBe(1);
    expect(voterReport([ranking([0, 1, 2]), ranking([2, 1, 0])])).toMatchObject({
      contradicting: 1,
      contradictions: 3,
    });
    expect(voterReport([])).toEqual({ annotators: 0, oneVote: 0, onlyTies: 0, contradicting: 0, contradictions: 0 });
  });
});

describe('paired bootstrap', () => {
  it('has the coverage of its level on normal differences', () => {
    // Means of seeds vary by 0.1, voters by 0.5: an interval over voters alone would be too narrow.
    let covered = 0;
    for (let trial = 0; trial < 200; trial++) {
      const seeds = gaussians(8, trial).map((shift, s) =>
        gaussians(30, 1000 * trial + s).map((x) => 0.1 * shift + 0.5 * x),
      );
      const { low, high } = pairedBootstrap(seeds, { draws: 400, seed: trial });
      if (low <= 0 && high >= 0) covered++;
    }
    expect(covered / 200).toBeGreaterThan(0.87);
    expect(covered / 200).toBeLessThan(0.99);
  });

  it('of equal models is nothing, of none is no number', () => {
    expect(pairedBootstrap([[0, 0], [0]])).toEqual({ mean: 0, low: 0, high: 0 });
    expect(pairedBootstrap([[]]).mean).toBeNaN();
    expect(pairedBootstrap([[1, 3], []])).toMatchObject({ mean: 2 });
    expect(worstDecile([0.5, 0.1, 0.9])).toBe(0.1);
    expect(worstDecile(Array.from({ length: 20 }, (_, i) => i))).toBe(0.5);
  });
});

describe('two models compared', () => {
  const metrics = (rows: number, accuracy: number, log_likelihood: number, ties?: number) => ({
    rows,
    accuracy,
    margin: 0,
    log_likelihood,
    ...(ties === undefined ? {} : { ties }),
  });
  const judged = (annotators: Record<string, ReturnType<typeof metrics>>) => ({
    overall: metrics(0, 0, 0),
    annotators,
  });
  const one = judged({ a: metrics(4, 0.75, -0.5), b: metrics(40, 0.5, -0.7) });

  it('voter by voter, every voter alike, however many rows they have', () => {
    const other = judged({ a: metrics(4, 0.25, -0.9), b: metrics(40, 0.4, -0.6) });
    const { seeds, voters, accuracy, log_likelihood } = compareEvaluations([[one, other]]);
    expect([seeds, voters]).toEqual([1, 2]);
    expect(accuracy.mean).toBeCloseTo(0.3, 12);
    expect([accuracy.low, accuracy.high].map((x) => Number(x.toFixed(6)))).toEqual([0.1, 0.5]);
    expect(log_likelihood!.mean).toBeCloseTo(0.15, 12);
    const twice = compareEvaluations([
      [one, other],
      [one, one],
    ]);
    expect([twice.seeds, twice.voters]).toEqual([2, 4]);
    expect(twice.accuracy.mean).toBeCloseTo(0.15, 12);
    expect(twice.accuracy.low).toBe(0);
  });

  it('where only one has a likelihood for ties, by accuracy alone', () => {
    const tied = judged({ a: metrics(6, 0.25, -0.9, 2), b: metrics(41, 0.4, -0.6, 1) });
    const { accuracy, log_likelihood } = compareEvaluations([[tied, one]]);
    expect(accuracy.mean).toBeCloseTo(-0.3, 12);
    expect(log_likelihood).toBeNull();
  });

  it('is refused on other rows, and on rows without a name', () => {
    const fewer = judged({ a: metrics(3, 0.25, -0.9), b: metrics(40, 0.4, -0.6) });
    expect(() => compareEvaluations([[one, fewer]])).toThrow(/"a": found 4 decided rows against 3/);
    expect(() => compareEvaluations([[one, judged({ a: metrics(4, 1, 0) })]])).toThrow(/"b": found 40 .* against 0/);
    expect(() => compareEvaluations([[judged({ a: metrics(4, 1, 0) }), one]])).toThrow(/"b": found 0 .* against 40/);
    expect(() => compareEvaluations([[judged({}), judged({})]])).toThrow(/no row names an annotator/);
  });
});

function gaussians(n: number, seed: number): number[] {
  let state = seed * 2654435761 + 12345;
  const uniform = () => {
    state = (Math.imul(state ^ (state >>> 15), 2246822519) + 0x9e3779b9) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  return Array.from({ length: n }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

it('a sketch keeps distances, and short places as they are', () => {
  const random = new Random(3);
  const [a, b, c] = [0, 1, 2].map(() => Float64Array.from({ length: 20_000 }, () => random.normal()));
  expect(sketch(a, 20_000)).toEqual(a);
  const apart = (x: Float64Array, y: Float64Array) => Math.sqrt(x.reduce((sum, v, i) => sum + (v - y[i]) ** 2, 0));
  for (const [x, y] of [
    [a, b],
    [b, c],
    [a, c],
  ])
    expect(Math.abs(apart(sketch(x, 1024), sketch(y, 1024)) / apart(x, y) - 1)).toBeLessThan(0.1);
});
