import { describe, expect, it, vi } from 'vitest';
import { bench } from '../lib/api/bench.js';
import { operationsOf } from '../lib/bench/operations.js';
import { requestsByAdapter } from '../lib/bench/ops.js';
import { type BenchRecord, median, runCases } from '../lib/bench/session.js';
import { cpu } from '../lib/kernels.js';
import { PluralignError } from '../lib/native/errors.js';
import { addon } from '../lib/native/loader.js';
import { stopOf } from '../lib/training/signals.js';

const stop = stopOf(new AbortController().signal);
const quick = { dtype: 'auto', device: 'auto', threads: 1, quick: true, stop } as const;

vi.spyOn(process.stderr, 'write').mockReturnValue(true);

describe('bench', () => {
  it('ops gives flat records with a share of the peak it measured', async () => {
    const { subject, results } = await bench('ops', quick);
    expect(subject).toBe('ops');
    expect(results[0]).toMatchObject({ op: 'multiply-add', isa: cpu().isa, threads: 1, peak_share: 1 });
    for (const dtype of ['float32', 'bf16'])
      expect(results.some((r) => r.op === 'linear' && r.dtype === dtype && r.shape === '1×576→1536')).toBe(true);
    expect(results.some((r) => r.op === 'grouped-lora backward')).toBe(true);
    for (const record of results.slice(1)) {
      expect(Object.values(record).every((v) => typeof v === 'string' || (Number.isFinite(v) && v > 0))).toBe(true);
      // under 1 on an idle machine; a wrong unit would be a thousand times off
      expect(record.peak_share).toBeLessThan(10);
    }
  });

  it('train times scoring, backward and steps', async () => {
    const { results } = await bench('train', { ...quick, dtype: 'float32' });
    expect(results.map((r) => r.work)).toEqual([
      'score',
      'score + backward',
      'dpo step',
      '4 policies + reference, together',
      '4 policies + reference, five runs',
    ]);
    for (const [i, r] of (results as Record<string, number>[]).entries()) {
      const policies = i < 3 ? 1 : 4;
      expect(r.tokens).toBe(policies * r.pairs * (64 + 2 * 96));
      expect(r.gflop).toBeGreaterThan(0);
      expect(r.peak_share).toBeLessThan(2);
      expect(r.tokens_per_s / (r.tokens / (r.ms / 1e3))).toBeCloseTo(1, 2);
      expect(r.pairs_per_s / ((policies * r.pairs) / (r.ms / 1e3))).toBeCloseTo(1, 2);
    }
    const [one, five] = (results as Record<string, number>[]).slice(3);
    // Five runs and all at once ask for the same.
    expect(one.gflop).toBe(five.gflop);
    expect(one.of_five_runs / (one.ms / five.ms)).toBeCloseTo(1, 2);
  });

  it('train --curves varies one thing at a time', async () => {
    const { results } = await bench('train', { ...quick, dtype: 'bf16', curves: true });
    const curves = new Set(results.map((r) => r.curve));
    expect([...curves]).toEqual(['tokens of the pass', 'tokens of a row', 'adapters', 'rank', 'threads']);
    for (const r of results as Record<string, number>[]) {
      expect(r.forward_us_per_token).toBeGreaterThan(0);
      expect(r.backward_us_per_token).toBeGreaterThan(0);
      expect(r.activations_kb_per_token).toBeGreaterThan(0);
    }
    const tokens = (curve: string) => results.filter((r) => r.curve === curve).map((r) => r.tokens);
    expect(tokens('tokens of the pass')).toEqual([256, 512]);
    expect(tokens('tokens of a row')).toEqual([28 * 128, 28 * 128]);
    expect(tokens('adapters')).toEqual([4096, 4096]);
  });

  it('stopped on the way, gives what was timed', async () => {
    const { flag } = stopOf(new AbortController().signal);
    const run = (code: string) => async (one: number, done: (record: BenchRecord) => void) => {
      if (one === 5) done({ half: 5 });
      if (one === 3 || one === 5) throw new PluralignError(code, 'no further');
      if (one === 4) Atomics.store(flag, 0, 1);
      done({ one });
    };
    expect(await runCases('cases', [1, 2, 3, 4], { flag }, run('ABORTED'))).toEqual([{ one: 1 }, { one: 2 }]);
    await expect(runCases('cases', [1, 2, 3, 4], { flag }, run('NON_FINITE'))).rejects.toMatchObject({
      code: 'NON_FINITE',
    });
    expect(await runCases('cases', [1, 5], { flag }, run('ABORTED'))).toEqual([{ one: 1 }, { half: 5 }]);
    expect(await runCases('cases', [1, 4, 2], { flag }, run('ABORTED'))).toEqual([{ one: 1 }, { one: 4 }]);
  });

  it('train stopped within a shape gives the works before', async () => {
    const { flag } = stop;
    const load = Atomics.load.bind(Atomics) as (at: Int32Array, i: number) => number;
    let looks = 0;
    // One look for the case and two for each work, a turn to warm up among them.
    const spy = vi.spyOn(Atomics, 'load').mockImplementation(((at: Int32Array, i: number) => {
      if (at === flag && ++looks === 8) flag[0] = 1;
      return load(at, i);
    }) as never);
    try {
      const { results } = await bench('train', { ...quick, dtype: 'float32' });
      expect(results.map((r) => r.work)).toEqual(['score', 'score + backward', 'dpo step']);
    } finally {
      spy.mockRestore();
      flag[0] = 0;
    }
  });

  it('ops stopped in its last measurement gives what was timed', async () => {
    const { flag } = stop;
    const native = addon().bench;
    const { peak } = native;
    let calls = 0;
    const spy = vi.spyOn(native, 'peak').mockImplementation((options) => {
      // Two before the cases.
      if (++calls === 3) flag[0] = 1;
      return peak(options);
    });
    try {
      const { results } = await bench('ops', { ...quick, dtype: 'float32' });
      expect(calls).toBe(3);
      expect(results.some((r) => r.op === 'grouped-lora backward' && (r.peak_share as number) > 0)).toBe(true);
    } finally {
      spy.mockRestore();
      flag[0] = 0;
    }
  });

  it('stops when asked, and refuses what it cannot time', async () => {
    const stopped = stopOf(AbortSignal.abort());
    await expect(bench('ops', { ...quick, stop: stopped })).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(bench('train', { ...quick, stop: stopped })).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(bench('ops', { ...quick, device: 'cuda' })).rejects.toMatchObject({ code: 'UNSUPPORTED' });
  });
});

it('operations of a step are those of its definition', () => {
  const group = { index: 0, kind: 'text', prompt: new Int32Array(3), completions: [new Int32Array(2)], weight: 1 };
  const trees = [{ group: { ...group, origin: { file: '', line: 1 } }, adapter: 0, grad: true }] as never;
  const shape = { hiddenSize: 4, intermediateSize: 5, heads: 2, kvHeads: 1, headDim: 3, layers: 2, vocabSize: 7 };
  const { forward, backward } = operationsOf(trees, shape as never, 1);
  // q 24, k 12, v 12, o 24, gate, up, down 20 each; factors of rank 1: 10, 7, 7, 10, 9, 9, 9. The first layer runs 5 rows, which
  // look 3 * 2 + 2 * 3 + 3 times; of the last, k and v do, the rest the 2 rows that are read, which look 3 + 4 times.
  const [rows, few, looks, fewLooks] = [5, 2, 15, 7];
  expect(forward).toBe(
    2 * rows * (132 + 61) + 2 * (rows * (24 + 14) + few * (108 + 47)) + 4 * (looks + fewLooks) * 6 + 2 * 2 * 4 * 7,
  );
  const first = 2 * rows * (132 - 48 + 2 * 61 - 3 * 4);
  const last = 2 * (rows * (24 + 2 * 14) + few * (108 + 2 * 47));
  expect(backward).toBe(first + last + 8 * (looks + fewLooks) * 6 + 2 * 2 * 4 * 7);
});

it('popularities share out every request', () => {
  expect(requestsByAdapter('identical', 64)).toEqual([64]);
  expect(requestsByAdapter('distinct', 64)).toEqual(Array(64).fill(1));
  expect(requestsByAdapter('uniform', 64)).toEqual(Array(8).fill(8));
  expect(requestsByAdapter('skewed', 64).slice(0, 4)).toEqual([21, 14, 10, 6]);
  for (const n of [1, 2, 7, 64, 100])
    for (const name of ['identical', 'distinct', 'uniform', 'skewed'] as const)
      expect(requestsByAdapter(name, n).reduce((a, b) => a + b)).toBe(n);
});

it('the median of an even number of runs lies between the middle two', () => {
  expect(median([3, 1, 2])).toBe(2);
  expect(median([4, 1, 3, 2])).toBe(2.5);
});
