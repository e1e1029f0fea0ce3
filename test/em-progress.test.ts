// The one bar of a run over types: what it plans is what the run does, whatever is fitted, resumed or left out.
import { describe, expect, it, vi } from 'vitest';
import type { Config } from '../lib/config/index.js';
import { type FitSize, WholeRun, workOf } from '../lib/em/language/whole.js';
import type { ProgressOptions } from '../lib/training/progress.js';
import { type TrainOptions, train } from '../lib/training/train.js';
import { fixture, scratch, writeRows } from './support/runs.js';

interface Seen {
  label: string;
  total: number;
  done: number[];
  at: string[];
  skipped: number;
  stopped: boolean;
}
const bars: Seen[] = [];
let watch: ((bar: Seen) => void) | null = null;

vi.mock('../lib/training/progress.js', async (original) => {
  const real = await original<typeof import('../lib/training/progress.js')>();
  const progress: typeof real.progress = (total, label, options: ProgressOptions = {}) => {
    const bar: Seen = { label, total, done: [], at: [], skipped: 0, stopped: false };
    bars.push(bar);
    return {
      update: (done) => {
        bar.done.push(done);
        bar.at.push(options.at?.() ?? '');
        watch?.(bar);
      },
      skip: (work) => {
        bar.skipped += work;
      },
      stop: () => {
        bar.stopped = true;
      },
    };
  };
  return { ...real, progress };
});

const { path } = scratch();
const f = fixture('mistral');
let count = 0;
const data = writeRows(
  path('votes.jsonl'),
  Array.from({ length: 60 }, (_, i) => {
    const [good, bad] = i % 2 === 0 ? [' sea', ' wind'] : [' wind', ' sea'];
    return { prompt: ['red', 'warm', 'near'][i % 3], chosen: good, rejected: bad, annotator: `u${i % 10}` };
  }),
);

async function fit(em: object, options: TrainOptions = {}, output = path(`run-${count++}`)): Promise<Seen> {
  bars.length = 0;
  const config = {
    method: 'em-dpo',
    model: f.model,
    data: { train: data },
    adapter: { r: 2, alpha: 4 },
    em: { types: 2, rounds: 3, ...em },
    train: { batch_size: 6, learning_rate: 1e-3, dtype: 'float32', threads: 1 },
    output,
  } as Config;
  await train(config, { quiet: true, onNote: () => {}, ...options });
  const own = bars.filter(({ label }) => label === 'em-dpo');
  expect(own).toHaveLength(1);
  return own[0];
}

const jumps = ({ done }: Seen) => done.map((x, i) => x - (done[i - 1] ?? 0));

describe('the bar of a run over types', () => {
  it.each([
    ['two fits', {}, 6],
    ['incremental', { e_step: 'incremental', m_epochs: 2, compare_one: false }, 3],
    ['in folds, with restarts', { folds: 2, restarts: 2, init: 'random' }, 9],
    ['several numbers of types', { types: [1, 2], rounds: 2 }, 10],
  ])('comes to its end by its fits alone: %s', async (_, em, rounds) => {
    const bar = await fit(em);
    expect(bar.at[0]).toBe(`round 1/${rounds}`);
    expect(bar.at.at(-1)).toBe(`round ${rounds}/${rounds}`);
    expect(bar.done.at(-1)).toBe(bar.total);
    expect(Math.min(...jumps(bar))).toBeGreaterThanOrEqual(0);
    // No fit ends far from where it was expected to: no step is longer than a batch or a pack.
    expect(Math.max(...jumps(bar))).toBeLessThan(bar.total / 8);
    expect(bar.stopped).toBe(true);
  });

  it('leaves out of its estimate what was done before a stop', async () => {
    const output = path('stopped');
    const controller = new AbortController();
    watch = ({ label, done, total }) => {
      if (label === 'em-dpo' && done.at(-1)! > total / 3) controller.abort();
    };
    const first = await fit({}, { stop: controller.signal }, output);
    watch = null;
    expect(first.stopped).toBe(true);
    const reached = first.done.at(-1)!;
    expect(reached).toBeLessThan(first.total / 2);
    const again = await fit({}, { resume: true }, output);
    expect(again.total).toBe(first.total);
    expect(again.skipped).toBeGreaterThan(0.8 * reached);
    expect(again.skipped).toBeLessThan(1.2 * reached);
    expect(again.done.at(-1)).toBe(again.total);
  });
});

describe('work', () => {
  const em = { rounds: 4, m_epochs: 2, folds: 1, e_step: 'exact' } as const;
  const size: FitSize = { types: 3, rows: 10 };

  it('is rows by types, an M-step twice a forward pass', () => {
    expect(workOf(size, em)).toBe(3 * (2 * 4 * 2 * 10 + 4 * 10));
    expect(workOf(size, { ...em, e_step: 'incremental' })).toBe(3 * (2 * 4 * 2 * 10 + 10));
    expect(workOf(size, { ...em, folds: 2 })).toBe(3 * (2 * 4 * 2 * 5 + 3 * 5 + 10));
  });

  it('of a fit that was left out is not waited for', () => {
    bars.length = 0;
    const whole = new WholeRun('em', [size, size], { ...em, rounds: 1 } as never);
    whole.begin('one', size, { round: 0, share: 0 });
    whole.end();
    whole.complete();
    expect(bars[0]).toMatchObject({ stopped: true });
    expect(bars[0].done.at(-1)).toBe(bars[0].total);
    expect(bars[0].at.at(-1)).toBe('round 2/2');
  });
});
