// The engine off the main thread: workers, the end of a process, aborting, disposing, memory.
import { createHash } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { pack } from '../lib/data/pack.js';
import { run } from './support/child.js';
import { compiled } from './support/compiled.js';
import { frozen, learning, randomBank, randomGroups, slowModel, tinyModel } from './support/engine.js';

let library: ReturnType<typeof compiled>;
beforeAll(() => {
  library = compiled(['test/support/engine.ts', 'test/support/engine-worker.ts', 'lib/model/safetensors.ts']);
});
afterAll(() => library.remove());

/** Runs a script in a process of its own, which has to end by itself, well, having printed `done`. */
async function succeeds(script: string) {
  const { code, signal, output } = await run(library.folder, script).ended;
  expect({ code, signal, output }).toEqual({ code: 0, signal: null, output: expect.stringMatching(/done\n$/) });
  return output;
}

const engine = `import { slowModel, tinyModel, randomGroups, frozen } from './test/support/engine.js';`;
const worker = `
  import { Worker } from 'node:worker_threads';
  const start = (workerData) => new Worker(new URL('./test/support/engine-worker.js', 'file://' + process.cwd() + '/'), { workerData, execArgv: [] });
  const heard = (worker) => new Promise((resolve, reject) => { worker.once('message', resolve); worker.once('error', reject); });
  const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));`;

describe('workers', () => {
  it.each([
    ['score', 5, 150],
    ['backward', 4, 30],
    ['generate', 4, 1],
    ['churn', 7, 1],
  ])('terminated in the middle of %s leave the process and its models alone', async (job, times, pairs) => {
    await succeeds(`${engine}${worker}
      const { model, bank, p } = await slowModel({ pairs: 4, layers: 2 });
      const { values } = await model.score(p, bank, 'logps');
      for (let i = 0; i < ${times}; i++) {
        const one = start({ job: '${job}', pairs: ${pairs} });
        if (await heard(one) !== 'started') throw new Error('not started');
        await wait(i * 7);
        await one.terminate();
        const again = await model.score(p, bank, 'logps');
        if (Buffer.compare(Buffer.from(values.buffer), Buffer.from(again.values.buffer))) throw new Error('other values');
      }
      console.log('done');`);
  });

  it('in parallel give the bits of the main thread', async () => {
    const { model, bank, p } = await slowModel({ pairs: 20, layers: 8, threads: 1 });
    const { values } = await model.score(p, bank, 'logps');
    const output = await succeeds(`${worker}
      const hashes = (one) => new Promise((resolve, reject) => {
        one.on('message', (message) => message !== 'started' && resolve(message));
        one.on('error', reject);
      });
      console.log((await Promise.all([1, 2].map(() => hashes(start({ job: 'score', pairs: 20 }))))).join());
      console.log('done');`);
    const hash = createHash('sha256').update(values).digest('hex');
    expect(output).toBe(`${hash},${hash}\ndone\n`);
  });
});

describe('a process', () => {
  it('that exits in the middle of a job exits with its own status', async () => {
    const started = Date.now();
    await succeeds(`${engine}
      const { model, bank, p } = await slowModel({ pairs: 300 });
      model.score(p, bank, 'logps', { keep: true }).then(() => { throw new Error('it should not come to this'); });
      setTimeout(() => { console.log('done'); process.exit(0); }, 100);`);
    expect(Date.now() - started).toBeLessThan(20_000);
  });

  it('that throws in the middle of a job fails without a crash', async () => {
    const { code, signal, output } = await run(
      library.folder,
      `${engine}
      const { model, bank, p } = await slowModel({ pairs: 200 });
      model.score(p, bank, 'logps');
      setTimeout(() => { throw new Error('on purpose'); }, 50);`,
    ).ended;
    expect({ code, signal }).toEqual({ code: 1, signal: null });
    expect(output).toContain('on purpose');
  });

  it('that has loaded the addon and asked no job of it ends by itself', async () => {
    await succeeds(`
      import { addon } from './lib/native/loader.js';
      console.log(addon().cpu().isa, 'done');`);
  });

  it('with a loaded model and nothing to do ends by itself, after its jobs', async () => {
    await succeeds(`${engine}
      globalThis.model = await tinyModel('qwen3');
      const { model, bank, p } = await slowModel({ pairs: 10 });
      globalThis.kept = { model, bank };
      model.score(p, bank, 'logps').then(() => console.log('done'));`);
  });
});

describe('memory', () => {
  const big = `
    import { mkdtempSync, rmSync } from 'node:fs';
    import { tmpdir } from 'node:os';
    import { addon } from './lib/native/loader.js';
    import { writeSafetensors } from './lib/model/safetensors.js';
    const dir = mkdtempSync(tmpdir() + '/pluralign-model-');
    process.on('exit', () => rmSync(dir, { recursive: true, force: true }));
    const { model: { shape }, bank } = await slowModel({ layers: 24 });
    await writeSafetensors(dir + '/model.safetensors', bank.factors.map((f, i) =>
      ({ name: f.name, shape: f.rows === 1 ? [f.cols] : [f.rows, f.cols], data: bank.values(i) })));
    const weights = 24 * (4 * 128 * 128 + 3 * 128 * 352) * 4;`;

  it.each([
    ['were disposed of', 'native.dispose();', 3],
    // Node 20 leaves what addons account for out of memoryUsage().external; that it presses on the collector shows here.
    ['nobody holds any more', '', 12],
  ])('does not grow with models that %s', async (_, end, most) => {
    await succeeds(`${engine}${big}
      // Without a tokenizer, whose garbage would bring the collector by itself.
      const use = async () => {
        const native = await addon().loadModel(shape, [dir + '/model.safetensors'], { dtype: 'bfloat16', threads: 2 });
        await native.generate([Int32Array.of(1)], null, {
          adapter: -1, maxNewTokens: 1, temperature: 0, topK: 0, topP: 1, seeds: new Uint32Array(1), stopTokens: new Int32Array(0),
        });
        if (native.memory().weights < weights) throw new Error('memory() has ' + native.memory().weights);
        ${end}
      };
      for (let i = 0; i < 5; i++) await use();
      const before = process.memoryUsage.rss();
      for (let i = 0; i < 25; i++) await use();
      const grown = process.memoryUsage.rss() - before;
      if (grown > ${most} * weights) throw new Error('grown by ' + grown + ' over 25 models of ' + weights);
      console.log('done');`);
  });
});

describe('aborting', () => {
  it('stops a long score soon, and the model goes on', async () => {
    const { model, bank, p } = await slowModel();
    // By processor time: others may take the processors at any moment.
    const spent = () => {
      const { user, system } = process.cpuUsage();
      return user + system;
    };
    const from = spent();
    const { values } = await model.score(p, bank, 'logps');
    const whole = spent() - from;
    const abort = new Int32Array(1);
    const start = spent();
    const stopped = expect(model.score(p, bank, 'logps', { abort })).rejects.toMatchObject({ code: 'ABORTED' });
    while (spent() - start < whole / 10) await new Promise((resolve) => setTimeout(resolve, 1));
    abort[0] = 1;
    const at = spent();
    await stopped;
    expect(spent() - at).toBeLessThan(whole / 2);
    await expect(model.score(p, bank, 'logps', { keep: true, abort })).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(model.backward(p, bank, values)).rejects.toMatchObject({ code: 'BAD_ARGUMENT' });
    expect((await model.score(p, bank, 'logps')).values).toEqual(values);
  });

  it('stops backward, hidden rows and generation, and jobs that still wait', async () => {
    const { model, bank, p, ones } = await slowModel({ pairs: 30 });
    const abort = new Int32Array(1);
    await model.score(p, bank, 'logps', { keep: true });
    const quiet = pack(p.groups, { policies: [frozen(0)], read: 'reward' });
    const jobs = [
      model.backward(p, bank, ones, abort),
      model.generate([Int32Array.of(1)], bank, { maxNewTokens: 1000, abort }),
      model.native.hidden(
        quiet.native,
        bank.native(),
        new Float32Array(quiet.native.rows.length * model.config.hiddenSize),
        abort,
      ),
    ];
    abort[0] = 1;
    for (const { status, reason } of (await Promise.allSettled(jobs)) as PromiseRejectedResult[])
      expect({ status, code: reason?.code }).toEqual({ status: 'rejected', code: 'ABORTED' });
  });
});

describe('jobs', () => {
  it('run in the order they were asked for, while the event loop goes on', async () => {
    const { model, bank, p, ones } = await slowModel();
    const small = pack(p.groups.slice(0, 1), { policies: [learning(0)], read: 'logps' });
    let turns = 0;
    let turning: NodeJS.Immediate | null = null;
    const turn = () => {
      turns++;
      turning = setImmediate(turn);
    };
    turn();
    const order: { name: string; turns: number }[] = [];
    const note = (name: string) => () => order.push({ name, turns });
    await Promise.all([
      model.score(p, bank, 'logps', { keep: true }).then(note('long score')),
      model.backward(p, bank, ones).then(note('backward')),
      model.score(small, bank, 'logps').then(note('short score')),
      model.generate([Int32Array.of(1)], bank, { maxNewTokens: 1 }).then(note('generate')),
    ]);
    clearImmediate(turning!);
    expect(order.map(({ name }) => name)).toEqual(['long score', 'backward', 'short score', 'generate']);
    expect(order[0].turns).toBeGreaterThan(50);
    expect(order[1].turns - order[0].turns).toBeGreaterThan(50);
  });

  it('finish when their model is disposed of meanwhile, and nothing starts after that', async () => {
    const { model, bank, p, ones } = await slowModel({ pairs: 20 });
    const { values } = await model.score(p, bank, 'logps');
    const running = [model.score(p, bank, 'logps', { keep: true }), model.score(p, bank, 'logps')];
    await new Promise((resolve) => setTimeout(resolve, 5));
    model.dispose();
    model.dispose();
    for (const result of await Promise.all(running)) expect(result.values).toEqual(values);
    const disposed = { name: 'PluralignError', code: 'DISPOSED' };
    await expect(model.score(p, bank, 'logps')).rejects.toMatchObject(disposed);
    await expect(model.backward(p, bank, ones)).rejects.toMatchObject(disposed);
    await expect(model.generate([Int32Array.of(1)], bank)).rejects.toMatchObject(disposed);
    expect(() => model.weightShapes()).toThrow(expect.objectContaining(disposed));
    expect(() => model.native.memory()).toThrow(expect.objectContaining(disposed));
  });

  it('a bank that was disposed of is refused', async () => {
    using model = await tinyModel('qwen3');
    const bank = randomBank(model, ['u']);
    const p = pack(randomGroups(2, 270), { policies: [learning(0)], read: 'logps' });
    bank.dispose();
    await expect(model.score(p, bank, 'logps')).rejects.toMatchObject({ code: 'DISPOSED' });
    await expect(bank.step({ learningRate: 0, beta1: 0, beta2: 0, eps: 1, weightDecay: 0, maxGradNorm: null }))
      .rejects //
      .toMatchObject({ code: 'DISPOSED' });
  });
});
