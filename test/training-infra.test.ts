import * as fsp from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { stripVTControlCharacters } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { Random } from '../lib/base/random.js';
import { MetricsWriter, RunningMeans, readMetrics } from '../lib/training/metrics.js';
import { DataOrder, orderOf, stepsPerEpoch, totalSteps } from '../lib/training/order.js';
import { formatDuration, progress, say } from '../lib/training/progress.js';
import { learningRateFactor, warmupSteps } from '../lib/training/schedule.js';
import { handleStopSignals } from '../lib/training/signals.js';
import { crc32c, EventWriter, maskedCrc32c } from '../lib/training/tensorboard.js';
import { run, transpile } from './support/child.js';

let dir: string;
beforeEach(async () => {
  dir = await fsp.mkdtemp(join(tmpdir(), 'pluralign-infra-'));
});
afterEach(() => fsp.rm(dir, { recursive: true, force: true }));

describe('schedule', () => {
  const third = 1 / 3;
  // The learning rate of every step under transformers 5.18 with a peak of 1.
  const golden: [name: string, steps: number, warmup: number, minRatio: number, rates: number[]][] = [
    ['constant', 10, 0.3, 0, [0, third, 2 * third, 1, 1, 1, 1, 1, 1, 1]],
    [
      'linear',
      10,
      0.3,
      0,
      [
        0,
        third,
        2 * third,
        1,
        0.8571428571428571,
        0.7142857142857143,
        0.5714285714285714,
        0.42857142857142855,
        0.2857142857142857,
        0.14285714285714285,
      ],
    ],
    [
      'cosine',
      10,
      0.3,
      0,
      [
        0,
        third,
        2 * third,
        1,
        0.9504844339512095,
        0.8117449009293668,
        0.6112604669781572,
        0.38873953302184283,
        0.18825509907063326,
        0.04951556604879048,
      ],
    ],
    [
      'cosine',
      7,
      0.28,
      0.1,
      [0, 0.5, 1, 0.9140576474687263, 0.6890576474687263, 0.41094235253127376, 0.18594235253127372],
    ],
    ['linear', 4, 0, 0, [1, 0.75, 0.5, 0.25]],
    ['cosine', 4, 0, 0, [1, 0.8535533905932737, 0.5, 0.14644660940672627]],
    ['constant', 3, 0, 0, [1, 1, 1]],
  ];
  test.each(golden)('%s over %i steps, warm-up %f, floor %f', (kind, steps, warmup, minRatio, rates) => {
    for (const [step, rate] of rates.entries()) {
      const schedule = { kind: kind as 'linear', warmup, minRatio };
      expect(learningRateFactor(step, steps, schedule)).toBeCloseTo(rate, 14);
    }
  });

  test('warm-up is rounded up, but not by the dust of decimal shares', () => {
    expect([warmupSteps(10, 0.25), warmupSteps(100, 0.07), warmupSteps(10, 0)]).toEqual([3, 7, 0]);
  });
});

describe('order', () => {
  // Written down once: a run that is resumed under a later version must see the same order.
  const ORDER_0_0 = [2, 9, 4, 5, 6, 3, 1, 8, 7, 0];

  test('depends on seed and epoch only, and is the same for ever', () => {
    expect([...orderOf(10, 0, 0, true)]).toEqual(ORDER_0_0);
    expect([...orderOf(10, 1, 0, true)]).not.toEqual(ORDER_0_0);
    expect([...orderOf(10, 0, 1, true)]).not.toEqual(ORDER_0_0);
    expect([...orderOf(10, 0, 2 ** 32, true)]).not.toEqual(ORDER_0_0);
    expect([...orderOf(4, 9, 5, false)]).toEqual([0, 1, 2, 3]);
  });

  test('every epoch is a permutation, every place equally likely', () => {
    const counts = Array.from({ length: 5 }, () => new Array(5).fill(0));
    const draws = 20_000;
    for (let epoch = 0; epoch < draws; epoch++) {
      const order = orderOf(5, epoch, 7, true);
      expect(new Set(order).size).toBe(5);
      for (const [place, item] of order.entries()) counts[place][item]++;
    }
    // Five standard deviations of a binomial count.
    const tolerance = 5 * Math.sqrt(draws * 0.2 * 0.8);
    for (const count of counts.flat()) expect(Math.abs(count - draws / 5)).toBeLessThan(tolerance);
  });

  test('a step’s batch follows from the step alone', () => {
    const options = { batchSize: 3, seed: 1, shuffle: true };
    const straight = new DataOrder(8, options);
    const batches = Array.from({ length: 9 }, (_, step) => [...straight.batch(step)]);
    expect(batches.map((batch) => batch.length)).toEqual([3, 3, 2, 3, 3, 2, 3, 3, 2]);
    for (const epoch of [0, 1, 2]) {
      expect(batches.slice(3 * epoch, 3 * epoch + 3).flat()).toEqual([...orderOf(8, epoch, 1, true)]);
    }
    for (const step of [8, 2, 5]) expect([...new DataOrder(8, options).batch(step)]).toEqual(batches[step]);
    expect([0, 1, 3, 4].map((steps) => straight.epochAt(steps))).toEqual([0, 3 / 8, 1, 11 / 8]);
  });

  test('length of a run', () => {
    expect(stepsPerEpoch(17, 8)).toBe(3);
    expect(totalSteps(17, 8, { epochs: 2, steps: null })).toBe(6);
    expect(totalSteps(17, 8, { epochs: 0.5, steps: null })).toBe(2);
    expect(totalSteps(80, 8, { epochs: 1.1, steps: null })).toBe(11);
    expect(totalSteps(17, 8, { epochs: null, steps: 4 })).toBe(4);
  });
});

test('random numbers are uniform and normal', () => {
  const random = new Random(3);
  const n = 100_000;
  const uniform = Array.from({ length: n }, () => random.uniform());
  expect(Math.min(...uniform.slice(0, 50_000))).toBeGreaterThanOrEqual(0);
  expect(Math.abs(uniform.reduce((a, b) => a + b) / n - 0.5)).toBeLessThan(5 / Math.sqrt(12 * n));
  const normal = Array.from({ length: n }, () => random.normal());
  const mean = normal.reduce((a, b) => a + b) / n;
  expect(Math.abs(mean)).toBeLessThan(5 / Math.sqrt(n));
  expect(Math.abs(normal.reduce((a, b) => a + b * b, 0) / n - 1)).toBeLessThan(5 * Math.sqrt(2 / n));
  for (const limit of [1, 2, 3, 7, 2 ** 31 + 1]) expect(random.below(limit)).toBeLessThan(limit);
});

describe('metrics', () => {
  test('lines keep their order though writes overlap', async () => {
    const path = join(dir, 'metrics.jsonl');
    const writer = await MetricsWriter.open(path);
    await Promise.all([1, 2, 3].map((step) => writer.write({ step, loss: step / 3 })));
    await writer.close();
    expect((await readMetrics(path)).map((record) => record.step)).toEqual([1, 2, 3]);
    expect(await fsp.readFile(path, 'utf8')).toMatch(/^\{"step":1,"loss":0\.3333333333333333\}\n/);
  });

  test('a resumed run cuts off later and unfinished lines', async () => {
    const path = join(dir, 'metrics.jsonl');
    const lines = [1, 2, 3, 4, 5].map((step) => `{"step":${step},"loss":${step}}\n`).join('');
    await fsp.writeFile(path, `${lines}{"step":6,"lo`);
    const writer = await MetricsWriter.open(path, { resumeAt: 3 });
    await writer.write({ step: 4, loss: 9 });
    await writer.close();
    expect(await fsp.readFile(path, 'utf8')).toBe(
      '{"step":1,"loss":1}\n{"step":2,"loss":2}\n{"step":3,"loss":3}\n{"step":4,"loss":9}\n',
    );
    expect(await fsp.readdir(dir)).toEqual(['metrics.jsonl']);
  });

  test('a new run starts empty; resuming without a file is no error', async () => {
    const path = join(dir, 'metrics.jsonl');
    await (await MetricsWriter.open(path, { resumeAt: 0 })).close();
    await fsp.writeFile(path, '{"step":1}\n');
    await (await MetricsWriter.open(path)).close();
    expect(await fsp.readFile(path, 'utf8')).toBe('');
    expect(await readMetrics(join(dir, 'none'))).toEqual([]);
  });

  test('means are weighted, and their state survives JSON exactly', () => {
    const means = new RunningMeans();
    means.addAll({ loss: 0.1, acc: 1 }, 3);
    means.add('loss', 0.7, 1);
    means.add('loss', Number.NaN, 0);
    const copy = new RunningMeans(JSON.parse(JSON.stringify(means.state())));
    for (const each of [means, copy]) each.add('loss', 1 / 3, 2);
    const taken = means.take();
    expect(taken.loss).toBeCloseTo((0.3 + 0.7 + 2 / 3) / 6, 15);
    expect(taken.acc).toBe(1);
    expect(copy.take()).toEqual(taken);
    expect(means.take()).toEqual({});
  });
});

describe('event files', () => {
  /** Bit by bit, from the polynomial's definition. */
  function slowCrc(bytes: Uint8Array): number {
    let crc = 0xffffffffn;
    for (const byte of bytes) {
      crc ^= BigInt(byte);
      for (let bit = 0; bit < 8; bit++) crc = crc & 1n ? (crc >> 1n) ^ 0x82f63b78n : crc >> 1n;
    }
    return Number(crc ^ 0xffffffffn);
  }
  function slowMask(bytes: Uint8Array): number {
    const crc = BigInt(slowCrc(bytes));
    return Number((((crc >> 15n) | (crc << 17n)) + 0xa282ead8n) & 0xffffffffn);
  }

  test('checksums equal the published vectors', () => {
    expect(crc32c(Buffer.from('123456789'))).toBe(0xe3069283);
    // RFC 3720, B.4.
    expect(crc32c(new Uint8Array(32))).toBe(0x8a9136aa);
    expect(crc32c(new Uint8Array(32).fill(255))).toBe(0x62a8ab43);
    expect(crc32c(Uint8Array.from({ length: 32 }, (_, i) => i))).toBe(0x46dd794e);
    expect(crc32c(Uint8Array.from({ length: 32 }, (_, i) => 31 - i))).toBe(0x113fdb5c);
    for (const text of ['', 'a', 'brain.Event:2'])
      expect(maskedCrc32c(Buffer.from(text))).toBe(slowMask(Buffer.from(text)));
  });

  type Field = [field: number, value: bigint | Buffer];
  function parse(data: Buffer): Field[] {
    let at = 0;
    const varint = () => {
      let value = 0n;
      for (let shift = 0n; ; shift += 7n) {
        const byte = data[at++];
        value |= BigInt(byte & 127) << shift;
        if (byte < 128) return value;
      }
    };
    const fields: Field[] = [];
    while (at < data.length) {
      const key = Number(varint());
      const wire = key & 7;
      if (wire === 0) fields.push([key >> 3, varint()]);
      else {
        const length = wire === 1 ? 8 : wire === 5 ? 4 : Number(varint());
        fields.push([key >> 3, data.subarray(at, at + length)]);
        at += length;
      }
    }
    expect(at).toBe(data.length);
    return fields;
  }
  function records(file: Buffer): Field[][] {
    const out: Field[][] = [];
    for (let at = 0; at < file.length; ) {
      const length = Number(file.readBigUInt64LE(at));
      expect(file.readUInt32LE(at + 8)).toBe(slowMask(file.subarray(at, at + 8)));
      const data = file.subarray(at + 12, at + 12 + length);
      expect(file.readUInt32LE(at + 12 + length)).toBe(slowMask(data));
      out.push(parse(data));
      at += 16 + length;
    }
    return out;
  }

  test('a reader of its own finds every scalar', async () => {
    const writer = await EventWriter.open(dir, { resumeAt: 300 });
    await Promise.all([
      writer.scalars(301, { loss: Math.LN2, 'rewards/margins': -2.5 }, 1700000000.25),
      writer.scalars(2 ** 33, { loss: 0.25 }),
      writer.scalars(5, {}),
    ]);
    await writer.close();
    expect(writer.path).toMatch(/events\.out\.tfevents\.\d{10}\.[\w-]+\.\d+\.\d+$/);
    const [version, purge, first, second, ...rest] = records(await fsp.readFile(writer.path)).map(
      (fields) => new Map(fields),
    );
    expect(String(version.get(3))).toBe('brain.Event:2');
    expect(purge.get(2)).toBe(301n);
    expect(parse(purge.get(7) as Buffer)).toEqual([[1, 1n]]);
    expect((first.get(1) as Buffer).readDoubleLE()).toBe(1700000000.25);
    expect(first.get(2)).toBe(301n);
    const values = parse(first.get(5) as Buffer).map(([, value]) => new Map(parse(value as Buffer)));
    expect(values.map((value) => [String(value.get(1)), (value.get(2) as Buffer).readFloatLE()])).toEqual([
      ['loss', Math.fround(Math.LN2)],
      ['rewards/margins', -2.5],
    ]);
    expect(second.get(2)).toBe(2n ** 33n);
    expect(rest).toEqual([]);
  });
});

describe('progress', () => {
  function watch(isTTY: boolean, options: { quiet?: boolean; done?: number; at?: () => string } = {}) {
    let time = 0;
    let text = '';
    const stream = {
      isTTY,
      columns: 120,
      write: (part: string) => {
        text += part;
        return true;
      },
    } as unknown as NodeJS.WriteStream;
    const bar = progress(100, 'train', { ...options, stream, now: () => time });
    return { bar, stream, at: (ms: number) => (time = ms), text: () => text };
  }

  test('short work shows nothing', () => {
    for (const isTTY of [true, false]) {
      const { bar, at, text } = watch(isTTY);
      at(1500);
      bar.update(50, { loss: 1 });
      bar.stop();
      expect(text()).toBe('');
    }
  });

  test('away from a terminal: a line about every ten seconds and one at the end', () => {
    const { bar, at, text } = watch(false, { done: 10 });
    for (let second = 1; second <= 25; second++) {
      at(second * 1000);
      bar.update(10 + second, { loss: 0.123456, tokens: second * 2000 });
    }
    at(26_000);
    bar.stop();
    bar.stop();
    expect(text().split('\n')).toEqual([
      'train: 20/100 (20 %), 1m20s left, loss 0.1235, 2,000 tokens/s',
      'train: 30/100 (30 %), 1m10s left, loss 0.1235, 2,000 tokens/s',
      expect.stringMatching(/^train: 35\/100 \(35 %\), /),
      '',
    ]);
  });

  test('away from a terminal: what is done is said once', () => {
    const { bar, at, text } = watch(false);
    at(30_000);
    bar.update(100);
    bar.stop();
    expect(text()).toBe('train: 100/100 (100 %), took 30s\n');
  });

  test('how far it is can be said in other words, and work that was done before is left out of the estimate', () => {
    const { bar, at, text } = watch(false, { at: () => 'round 2/4' });
    bar.skip(50);
    at(10_000);
    bar.update(60, {});
    bar.stop();
    expect(text()).toBe('train: round 2/4 (60 %), 40s left\ntrain: round 2/4 (60 %), 40s left\n');
  });

  test('on a terminal: a bar, and no handlers are left behind', () => {
    const before = ['exit', 'SIGINT', 'SIGTERM'].map((name) => process.listenerCount(name));
    const { bar, at, text } = watch(true);
    at(2500);
    bar.update(40, { loss: 0.5 });
    at(5000);
    bar.update(80, { loss: 0.25 });
    bar.stop();
    expect(text()).toContain('40/100');
    expect(text()).toMatch(/80\/100 \| 1s left \| loss 0\.25/);
    expect(['exit', 'SIGINT', 'SIGTERM'].map((name) => process.listenerCount(name))).toEqual(before);
  });

  test('on a terminal: a note has a line of its own above the bar, and lines do not wrap', () => {
    const { bar, at, text, stream } = watch(true);
    at(2500);
    bar.update(40, { loss: 0.5, name: 'x'.repeat(200) });
    say('saved', stream);
    at(3000);
    bar.update(60, { loss: 0.5 });
    bar.stop();
    say('after', stream);
    // What a terminal would show: ESC[1G goes back to the start of the line.
    const shown = text()
      .split('\n')
      .map((line) => line.split('\u001b[1G').map(stripVTControlCharacters).filter(Boolean).at(-1) ?? '');
    expect(shown).toEqual(['saved', expect.stringMatching(/^train █.* 60\/100 \| 2s left \| loss 0\.5$/), 'after', '']);
    expect(text().startsWith('\u001b[?7l')).toBe(true);
    expect(text()).toContain('\u001b[?7h');
  });

  test('on a terminal: a bar that ends below another leaves a line above it, and its place', () => {
    const { bar, at, text, stream } = watch(true);
    at(2500);
    bar.update(40);
    for (let i = 1; i <= 3; i++) {
      let time = 0;
      const inner = progress(10, `eval ${i}`, { stream, now: () => time });
      time = 4000;
      inner.update(10);
      inner.stop();
    }
    bar.stop();
    expect(text().match(/eval \d: 10\/10 \(100 %\)/g)).toEqual([
      'eval 1: 10/10 (100 %)',
      'eval 2: 10/10 (100 %)',
      'eval 3: 10/10 (100 %)',
    ]);
    // Never more than one line up: no bar that has ended is drawn again.
    expect(text()).not.toContain('\u001b[2A');
  });

  test('quiet is quiet', () => {
    const { bar, at, text } = watch(false, { quiet: true });
    at(60_000);
    bar.update(50);
    bar.stop();
    expect(text()).toBe('');
  });

  test('durations', () => {
    expect([0, 59.4, 75, 3600, 7384, Number.NaN].map(formatDuration)).toEqual([
      '0s',
      '59s',
      '1m15s',
      '1h00m',
      '2h03m',
      '?',
    ]);
  });
});

describe('signals', () => {
  test('importing installs nothing, dispose takes all away', () => {
    expect(process.listenerCount('SIGTERM')).toBe(0);
    const stop = handleStopSignals();
    expect(process.listenerCount('SIGTERM')).toBe(1);
    expect([stop.requested, stop.flag[0], stop.exitCode]).toEqual([false, 0, 0]);
    stop.request();
    expect([stop.requested, stop.flag[0], stop.signal.aborted]).toEqual([true, 1, true]);
    stop.dispose();
    expect([process.listenerCount('SIGTERM'), process.listenerCount('SIGINT')]).toEqual([0, 0]);
  });

  const script = `
    import { handleStopSignals } from './training/signals.js';
    const stop = handleStopSignals((name) => {
      console.log('asked by ' + name);
      // A runner such as npx passes on what the terminal has sent already: that is not a second press.
      process.kill(process.pid, name);
    });
    console.log('ready');
    const timer = setInterval(() => {
      if (process.argv[1] === 'obey' && stop.requested) {
        clearInterval(timer);
        stop.dispose();
        console.log('saved');
        process.exitCode = stop.exitCode;
      }
    }, 5);`;

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s stops in order; a second one at once', async (signal, status) => {
    transpile(dir, ['training/signals']);
    const obedient = run(dir, script, ['obey']);
    const stubborn = run(dir, script, ['ignore']);
    for (const child of [obedient, stubborn]) {
      await child.printed('ready');
      child.process.kill(signal);
      await child.printed(`asked by ${signal}`);
    }
    expect(await obedient.ended).toMatchObject({ code: status, output: `ready\nasked by ${signal}\nsaved\n` });
    await new Promise((resolve) => setTimeout(resolve, 250));
    expect(stubborn.process.exitCode).toBeNull();
    stubborn.process.kill(signal);
    expect((await stubborn.ended).code).toBe(status);
  });
});
