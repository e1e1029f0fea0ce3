// Evaluation during training, early stopping, splits and schedules.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { scoreCommand } from '../lib/api/score.js';
import { loadLatestCheckpoint } from '../lib/training/checkpoint.js';
import { fixture, goldenConfig, program, scratch, trained, writeRows } from './support/runs.js';

const { path } = scratch();
const f = fixture('mistral');
let count = 0;
const run = (changes: Parameters<typeof goldenConfig>[2]) => trained(goldenConfig(f, path(`run-${count++}`), changes));
const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;

describe('evaluation', () => {
  it('gives the numbers of a computation by hand, in training and from the command line', async () => {
    const ran = await run({ data: { eval: f.prefs } });
    const stop = { signal: new AbortController().signal, flag: new Int32Array(1) };
    const options = { data: [f.prefs], dtype: 'float32' as const, threads: 1, stop };
    const { policies, rows } = await scoreCommand({ run: ran.output, adapters: [], ...options });
    expect(policies).toEqual(['base', 'adapter']);
    const margins = rows.map(({ logps }) => {
      const [w, l] = [0, 1].map((k) => 0.1 * (logps!.adapter[k] - logps!.base[k]));
      return w - l;
    });
    const p = margins.map((m) => 1 / (1 + Math.exp(-m)));
    const expected = {
      accuracy: mean(margins.map((m) => (m > 0 ? 1 : 0))),
      margin: mean(margins),
      log_likelihood: mean(p.map(Math.log)),
      brier: mean(p.map((x) => (1 - x) ** 2)),
      loss: -mean(p.map(Math.log)),
    };
    const bins = new Map<number, number[]>();
    for (const x of p) {
      const c = Math.max(x, 1 - x);
      const bin = Math.floor((c - 0.5) * 20);
      bins.set(bin, [...(bins.get(bin) ?? []), c - (x > 0.5 ? 1 : 0)]);
    }
    const ece = [...bins.values()].reduce((sum, gaps) => sum + Math.abs(mean(gaps)) * gaps.length, 0) / p.length;

    const printed = await program('eval', '--run', ran.output, '--data', f.prefs, '--dtype', 'float32', '--json');
    expect(printed.status).toBe(0);
    for (const found of [ran.summary.eval!, JSON.parse(printed.stdout)]) {
      for (const [name, value] of Object.entries({ ...expected, ece }))
        expect(found.overall[name], name).toBeCloseTo(value, 5);
      expect(Object.keys(found.annotators)).toEqual(['u0', 'u1', 'u2']);
      for (const [k, name] of ['u0', 'u1', 'u2'].entries()) {
        // Rows go u0 u1 u2 u0 u1 u2.
        const own = [margins[k], margins[k + 3]];
        expect(found.annotators[name]).toMatchObject({ rows: 2, accuracy: mean(own.map((m) => (m > 0 ? 1 : 0))) });
        expect(found.annotators[name].margin).toBeCloseTo(mean(own), 5);
      }
      const worst = Math.min(...Object.values<{ accuracy: number }>(found.annotators).map((a) => a.accuracy));
      expect(found.worst.accuracy).toBe(worst);
      expect(found.overall.worst_decile_accuracy).toBe(worst);
    }
    expect(JSON.parse(printed.stdout).overall).toEqual(ran.summary.eval!.overall);
  });

  it('before training is that of the first step’s loss, and changes no step', async () => {
    const plain = await run({});
    const watched = await run({ data: { eval: f.prefs }, train: { eval_every: 1 } });
    expect(watched.bytes).toEqual(plain.bytes);
    expect(watched.steps).toEqual(plain.steps);
    expect(watched.summary.eval_before!.overall.loss).toBe(plain.steps[0].loss);
    expect(watched.evaluations.map((e) => e.step)).toEqual([1, 2, 3]);
    // Where steps are logged less often than evaluations are made, one object for each step still says it all.
    const seldom = await run({ data: { eval: f.prefs }, train: { eval_every: 1, log_every: 100 } });
    const lines = readFileSync(join(seldom.output, 'metrics.jsonl'), 'utf8').trim().split('\n');
    for (const [i, line] of lines.map((l) => JSON.parse(l)).entries())
      expect(line).toMatchObject({ ...plain.steps[i], eval_loss: watched.evaluations[i].eval_loss });
    expect(lines).toHaveLength(3);
    // Evaluated after step n is the loss of step n + 1 on the same rows.
    expect(watched.evaluations[0].eval_loss).toBe(plain.steps[1].loss);
    expect(watched.summary.eval!.overall.loss).toBe(watched.evaluations[2].eval_loss);
  });

  it('does not move the running mean of bco', async () => {
    const loss = { type: 'bco_pair' as const };
    const plain = await run({ loss, train: { batch_size: 2 } });
    const watched = await run({ loss, data: { eval: f.prefs }, train: { batch_size: 2, eval_every: 1 } });
    expect(watched.bytes).toEqual(plain.bytes);
  });

  it('holds out rows, prompts and annotators', async () => {
    for (const by of ['row', 'prompt', 'annotator'] as const) {
      const ran = await run({ data: { split: { by, eval: 0.34 } } });
      const held = ran.summary.eval!;
      expect(held.overall.rows).toBe(2);
      if (by === 'annotator') expect(Object.keys(held.annotators)).toHaveLength(1);
    }
  });

  it('of supervised text is its loss', async () => {
    const rows = f.rows.map(({ prompt, chosen }) => ({ prompt, completion: chosen }));
    const file = writeRows(path('sft.jsonl'), rows);
    const ran = await run({ method: 'sft', data: { train: file, eval: file }, train: { eval_every: 1 } });
    expect(ran.summary.eval).toEqual({ overall: { rows: 6, loss: ran.evaluations[2].eval_loss }, annotators: {} });
    expect(ran.evaluations[0].eval_loss).toBe(ran.steps[1].loss);
  });
});

describe('early stopping', () => {
  // Other rows than those that are learnt from: their loss falls at first, then rises.
  const data = {
    train: writeRows(path('first.jsonl'), f.rows.slice(0, 3)),
    eval: writeRows(path('last.jsonl'), f.rows.slice(3)),
  };
  const early = {
    data,
    train: {
      steps: 40,
      batch_size: 2,
      learning_rate: 0.02,
      eval_every: 1,
      early_stopping: { patience: 3 },
      keep_checkpoints: 1,
    },
  };

  it('ends the run and keeps the parameters of the best evaluation', async () => {
    const ran = await run(early);
    const losses = ran.evaluations.map((e) => e.eval_loss);
    const best = losses.indexOf(Math.min(...losses));
    expect(best).toBeGreaterThan(0);
    expect(losses).toHaveLength(best + 1 + 3);
    expect(ran.summary.steps).toBe(best + 4);
    expect(ran.summary.eval!.overall.loss).toBe(losses[best]);
    // The same run ended at the best step has the same adapter.
    const until = await run({ ...early, train: { ...early.train, steps: best + 1, early_stopping: null } });
    expect(ran.bytes).toEqual(until.bytes);
    expect(existsSync(`${ran.output}/checkpoints/step-${best + 1}`)).toBe(true);
  });

  it('looks for the highest accuracy where it is told to', async () => {
    const early_stopping = { metric: 'eval_accuracy', patience: 2 };
    const ran = await run({ ...early, train: { ...early.train, early_stopping, log_every: 1000 } });
    const found = ran.evaluations.map((e) => e.eval_accuracy);
    expect(ran.summary.eval!.overall.accuracy).toBe(Math.max(...found));
    // A step that is evaluated is logged, the last one too.
    expect(ran.steps.at(-1)!.step).toBe(ran.summary.steps);
    expect(ran.summary.train.loss).toBe(ran.steps.at(-1)!.loss);
  });

  it('refuses a metric that there is not, before the first step', async () => {
    const early_stopping = { metric: 'eval_beauty' };
    const wrong = run({ ...early, train: { ...early.train, early_stopping } });
    await expect(wrong).rejects.toMatchObject({
      code: 'BAD_CONFIG',
      message: expect.stringMatching(/found eval_beauty, expected one of .*eval_accuracy.*eval_loss/),
    });
    expect(existsSync(path(`run-${count - 1}`))).toBe(false);
  });
});

describe('the run folder', () => {
  it('keeps as many checkpoints as it is told to, whole', async () => {
    const ran = await run({ train: { steps: 5, save_every: 1, keep_checkpoints: 2 } });
    expect(readdirSync(`${ran.output}/checkpoints`).sort()).toEqual(['step-4', 'step-5']);
    expect((await loadLatestCheckpoint(ran.output))!.step).toBe(5);
    expect(readdirSync(ran.output).filter((n) => /tmp|lock/.test(n))).toEqual([]);
    expect(JSON.parse(readFileSync(`${ran.output}/summary.json`, 'utf8'))).toEqual(ran.summary);
  });
});

describe('schedules', () => {
  const rates = async (train: object) =>
    (await run({ train: { steps: 8, learning_rate: 0.5, ...train } })).steps.map((s) => s.learning_rate);

  it('constant', async () => expect(await rates({ schedule: 'constant' })).toEqual(Array(8).fill(0.5)));

  it('linear, after a warm-up of a quarter', async () => {
    const found = await rates({ schedule: 'linear', warmup: 0.25 });
    [0, 0.25, 0.5, 5 / 12, 4 / 12, 3 / 12, 2 / 12, 1 / 12].forEach((rate, i) => {
      expect(found[i]).toBeCloseTo(rate, 12);
    });
  });

  it('cosine to a tenth', async () => {
    const found = await rates({ schedule: 'cosine', min_learning_rate_ratio: 0.1 });
    found.forEach((rate, i) => {
      expect(rate).toBeCloseTo(0.5 * (0.1 + 0.45 * (1 + Math.cos((Math.PI * i) / 8))), 12);
    });
  });

  it('the norm that is logged is the one before clipping', async () => {
    const plain = await run({});
    const clipped = await run({ train: { max_grad_norm: 1e-3 } });
    expect(clipped.steps[0].grad_norm).toBe(plain.steps[0].grad_norm);
    expect(clipped.bytes).not.toEqual(plain.bytes);
  });
});
