// A run that is interrupted and resumed, however and whenever, writes the bytes of one that is not.
import { appendFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, describe, expect, it } from 'vitest';
import { Random } from '../lib/base/random.js';
import type { Config } from '../lib/config/index.js';
import { checkpointSteps } from '../lib/training/checkpoint.js';
import { MetricsWriter, readMetrics } from '../lib/training/metrics.js';
import { type TrainOptions, type TrainSummary, train } from '../lib/training/train.js';
import {
  buildProgram,
  child,
  fixture,
  goldenConfig,
  program,
  type Ran,
  scratch,
  trained,
  writeConfig,
  writeRows,
} from './support/runs.js';

const { path } = scratch();
const f = fixture('mistral');
let count = 0;
const next = () => path(`run-${count++}`);

const metricsOf = (run: string) => readFileSync(`${run}/metrics.jsonl`, 'utf8');
const adapterOf = (run: string) => readFileSync(`${run}/adapter/adapter_model.safetensors`);
/** Dropout, shuffled epochs with a smaller last batch, a running mean, means over steps, evaluation, a falling rate. */
const everything = (output: string, more: Config['train'] = {}, changes: Parameters<typeof goldenConfig>[2] = {}) =>
  goldenConfig(f, output, {
    adapter: { init_from: f.adapter, dropout: 0.2 },
    loss: { type: ['bco_pair', 'sigmoid'] },
    data: { eval: f.prefs },
    train: {
      epochs: 20,
      batch_size: 4,
      shuffle: true,
      schedule: 'cosine',
      warmup: 0.1,
      max_grad_norm: 1,
      log_every: 3,
      save_every: 7,
      eval_every: 5,
      ...more,
    },
    ...changes,
  });
/** Those of the newest checkpoint. */
function parametersOf(run: string): Buffer {
  const steps = readdirSync(`${run}/checkpoints`).map((name) => Number(name.replace('step-', '')));
  return readFileSync(`${run}/checkpoints/step-${Math.max(...steps)}/parameters.f32`);
}
const quiet = (config: Config, options: TrainOptions = {}) => train(config, { quiet: true, ...options });

function expectEqual(run: string, whole: Ran): void {
  expect(metricsOf(run)).toBe(metricsOf(whole.output));
  expect(adapterOf(run).equals(whole.bytes)).toBe(true);
  expect(readdirSync(`${run}/checkpoints`).filter((name) => name.startsWith('.'))).toEqual([]);
}

/** Starts a run again and again, each time with a little more time before it is stopped, until it is done. */
async function interrupted(config: Config, seed: number): Promise<{ summary: TrainSummary; stops: number }> {
  const random = new Random(seed);
  for (let stops = 0; ; stops++) {
    const stop = AbortSignal.timeout(10 + stops * 2 + (random.next() % 20));
    try {
      const summary = await quiet(config, { stop, resume: true });
      if (summary.finished) return { summary, stops };
      expect(existsSync(`${config.output}/adapter`)).toBe(false);
    } catch (error) {
      expect(error).toMatchObject({ code: 'ABORTED' });
    }
  }
}

describe('an AbortSignal', () => {
  it.each([
    ['with everything in it', (output: string) => everything(output)],
    ['in several packs', (output: string) => everything(output, { max_tokens_per_pack: 40, save_every: null })],
    [
      'that evaluates at every step',
      (output: string) => everything(output, { epochs: 10, eval_every: 1, log_every: 1, gradient_checkpointing: true }),
    ],
    [
      'that stops early',
      (output: string) =>
        everything(output, {
          epochs: 30,
          learning_rate: 0.05,
          eval_every: 2,
          save_every: 5,
          schedule: 'constant',
          early_stopping: { patience: 4 },
          keep_checkpoints: 1,
        }),
    ],
  ])('at any moment of a run %s', async (_, make) => {
    const whole = await trained(make(next()));
    let total = 0;
    for (const seed of [1, 2]) {
      const config = make(next());
      const { summary, stops } = await interrupted(config, seed);
      expectEqual(config.output!, whole);
      expect(summary.eval).toEqual(whole.summary.eval);
      expect(summary.eval_before).toEqual(whole.summary.eval_before);
      expect(summary.train.loss).toBe(whole.summary.train.loss);
      total += stops;
    }
    expect(total).toBeGreaterThan(1);
  });

  it('in the last evaluation, when the best parameters are back: no checkpoint takes them for the last ones', async () => {
    const make = (output: string) =>
      everything(output, {
        epochs: 30,
        learning_rate: 0.05,
        eval_every: 2,
        save_every: 1,
        schedule: 'constant',
        early_stopping: { patience: 4 },
      });
    const whole = await trained(make(next()));
    const config = make(next());
    const controller = new AbortController();
    const onNote = (note: string) => {
      if (!note.startsWith('kept the parameters of step')) return;
      writeFileSync(`${config.output}/moved`, parametersOf(config.output!));
      controller.abort();
    };
    expect((await quiet(config, { stop: controller.signal, onNote })).finished).toBe(false);
    expect(parametersOf(config.output!)).toEqual(readFileSync(`${config.output}/moved`));
    expect((await quiet(config, { resume: true })).finished).toBe(true);
    expectEqual(config.output!, whole);
  });

  it('that came first: nothing is begun', async () => {
    const output = next();
    await expect(quiet(everything(output), { stop: AbortSignal.abort() })).rejects.toMatchObject({ code: 'ABORTED' });
    expect(existsSync(output)).toBe(false);
  });
});

describe('a process', () => {
  let whole: Ran;
  const long = (output: string) => everything(output, { epochs: 100, save_every: null, log_every: 1, eval_every: 50 });
  beforeAll(async () => {
    buildProgram();
    whole = await trained(long(next()));
  });
  const waitFor = async (condition: () => boolean | Promise<boolean>) => {
    const end = Date.now() + 60_000;
    while (!(await condition())) {
      if (Date.now() > end) throw new Error('waited for a minute');
      await sleep(3);
    }
  };
  const lines = (run: string) => (existsSync(`${run}/metrics.jsonl`) ? metricsOf(run).split('\n').length : 0);

  it.each([
    ['SIGTERM', 143],
    ['SIGINT', 130],
  ] as const)('stopped by %s saves within a step and ends with %i', async (signal, status) => {
    const output = next();
    const file = writeConfig(`${output}.yaml`, long(output));
    const running = child('train', file, '--json');
    await waitFor(() => lines(output) > 15);
    const before = lines(output);
    running.process.kill(signal);
    const ended = await running.ended;
    expect(ended).toMatchObject({ status, signal: null });
    const summary = JSON.parse(ended.stdout);
    expect(summary).toMatchObject({ finished: false, paths: { run: output } });
    expect(ended.stderr).toMatch(/stopped after step \d+; the run is saved, go on with --resume/);
    expect(await checkpointSteps(output)).toEqual([summary.steps]);
    // A few steps may pass while the signal is on its way.
    expect(summary.steps).toBeLessThan(before + 40);
    expect(readdirSync(output).filter((n) => n.startsWith('.'))).toEqual([]);
    expect(existsSync(`${output}/report.html`)).toBe(true);
    expect((await program('train', file, '--resume', '--json')).status).toBe(0);
    expectEqual(output, whole);
  });

  it('killed at random moments, also while it saves, goes on from its last whole checkpoint', async () => {
    const output = next();
    const config = long(output);
    const file = writeConfig(`${output}.yaml`, { ...config, train: { ...config.train, save_every: 1 } });
    const random = new Random(7);
    let reached = 0;
    for (let kill = 0; kill < 5; kill++) {
      const running = child('train', file, '--resume');
      await waitFor(async () => (await checkpointSteps(output))[0] > reached + (random.next() % 8));
      await sleep(random.next() % 12);
      running.process.kill('SIGKILL');
      expect((await running.ended).signal).toBe('SIGKILL');
      const [newest] = await checkpointSteps(output);
      expect(newest).toBeGreaterThan(reached);
      reached = newest;
    }
    expect(reached).toBeLessThan(200);
    const last = await program('train', file, '--resume');
    expect(last.status).toBe(0);
    expect(last.stderr).toMatch(/resumed at step \d+/);
    expectEqual(output, whole);
  });

  it('at work keeps a second one out, with status 2', async () => {
    const output = next();
    const file = writeConfig(`${output}.yaml`, long(output));
    const running = child('train', file);
    await waitFor(() => lines(output) > 2);
    for (const more of [[], ['--resume']]) {
      const second = await program('train', file, '--json', ...more);
      expect(second).toMatchObject({ status: 2, stdout: '' });
      expect(second.stderr).toMatch(
        /another run \(process \d+\) is writing here; wait for it or choose another output/,
      );
    }
    running.process.kill('SIGKILL');
    await running.ended;
    expect((await program('train', file)).stderr).toMatch(/holds a run; continue it with --resume/);
    expect((await program('train', file, '--resume')).status).toBe(0);
    expectEqual(output, whole);
  });
});

it('lines of metrics that the checkpoint does not know of are cut, also those of its own step', async () => {
  const file = path('metrics.jsonl');
  const writer = await MetricsWriter.open(file);
  for (const step of [1, 2, 2, 3]) await writer.write({ step });
  await writer.close();
  await (await MetricsWriter.open(file, { resumeAt: 2, records: 2 })).close();
  expect(await readMetrics(file)).toEqual([{ step: 1 }, { step: 2 }]);
});

describe('resuming', () => {
  const short = (output: string, more: Config['train'] = {}) =>
    everything(output, { epochs: 6, save_every: 2, ...more });
  let whole: Ran;
  beforeAll(async () => {
    whole = await trained(short(next()));
  });

  it('goes back behind a damaged checkpoint, and says so', async () => {
    const { output } = await trained(short(next()));
    rmSync(`${output}/adapter`, { recursive: true });
    const [newest, before] = await checkpointSteps(output);
    const file = `${output}/checkpoints/step-${newest}/parameters.f32`;
    const bytes = readFileSync(file);
    bytes[100] ^= 1;
    writeFileSync(file, bytes);
    const notes: string[] = [];
    await quiet(short(output), { resume: true, onNote: (note) => notes.push(note) });
    expect(notes.join('\n')).toMatch(/passed over a damaged checkpoint: .*parameters\.f32 does not match its SHA-256/);
    expect(notes).toContain(`resumed at step ${before}`);
    expectEqual(output, whole);
  });

  it('refuses to start anew where every checkpoint is damaged', async () => {
    const { output } = await trained(short(next()));
    for (const step of await checkpointSteps(output)) rmSync(`${output}/checkpoints/step-${step}/manifest.json`);
    await expect(quiet(short(output), { resume: true })).rejects.toMatchObject({ code: 'BAD_FILE' });
    expect(metricsOf(output)).toBe(metricsOf(whole.output));
  });

  it('a finished run changes nothing', async () => {
    const { output } = await trained(short(next()));
    const again = await quiet(short(output), { resume: true });
    expect(again.train.loss).toBe(whole.summary.train.loss);
    expect(again.eval).toEqual(whole.summary.eval);
    expectEqual(output, whole);
  });

  it('makes a run longer where the rate is constant', async () => {
    const make = (output: string, epochs: number) =>
      everything(output, { epochs, schedule: 'constant', warmup: 0, eval_every: null, save_every: 2, log_every: 1 });
    const straight = await trained(make(next(), 6));
    const output = next();
    await quiet(make(output, 3));
    await quiet(make(output, 6), { resume: true });
    expectEqual(output, straight);
  });

  it.each<[string, (config: Config) => void, RegExp]>([
    ['the rate', (c) => Object.assign(c.train!, { learning_rate: 1 }), /train\.learning_rate: was 0\.001, now 1/],
    ['the loss', (c) => Object.assign(c, { loss: { type: 'ipo' } }), /loss\.type/],
    ['the length under a schedule', (c) => Object.assign(c.train!, { epochs: 9 }), /train\.epochs: was 6, now 9/],
    ['the rank', (c) => Object.assign(c, { adapter: { r: 4 } }), /adapter\.r/],
  ])('with another setting of %s is refused', async (_, change, message) => {
    const config = short(whole.output);
    change(config);
    await expect(quiet(config, { resume: true })).rejects.toMatchObject({
      code: 'BAD_CONFIG',
      message: expect.stringMatching(message),
    });
    expect(adapterOf(whole.output).equals(whole.bytes)).toBe(true);
  });

  it('with other rows is refused', async () => {
    const rows = path('changing.jsonl');
    const make = (output: string) => everything(output, { epochs: 2, eval_every: null }, { data: { train: rows } });
    writeRows(rows, f.rows);
    const { output } = await trained(make(next()));
    appendFileSync(rows, `${JSON.stringify(f.rows[0])}\n`);
    await expect(quiet(make(output), { resume: true })).rejects.toMatchObject({
      code: 'BAD_DATA',
      message: expect.stringMatching(/the training rows \(or the tokenizer\) are not those that .* was trained on/),
    });
  });

  it('a run that had not made a step starts it', async () => {
    const config = short(next());
    await quiet(config, { resume: true });
    expectEqual(config.output!, whole);
  });

  it('without --resume is refused, and so is a folder that is no run, left as it is', async () => {
    await expect(quiet(short(whole.output))).rejects.toMatchObject({
      code: 'BAD_CONFIG',
      message: expect.stringMatching(/holds a run; continue it with --resume/),
    });
    const foreign = next();
    mkdirSync(foreign);
    writeFileSync(`${foreign}/thesis.txt`, 'all of it');
    for (const resume of [false, true])
      await expect(quiet(short(foreign), { resume })).rejects.toMatchObject({
        code: 'BAD_CONFIG',
        message: expect.stringMatching(/exists and is no run of this program/),
      });
    expect(readdirSync(foreign)).toEqual(['thesis.txt']);
  });
});
