// Experts that are trained beside each other over one base: the bits that each comes to alone, in one generation.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it, vi } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { type AdapterConfig, adapterConfig } from '../lib/adapters/config.js';
import type { Config } from '../lib/config/index.js';
import { generate } from '../lib/generation/engine.js';
import { Model } from '../lib/model/model.js';
import type { Sample } from '../lib/rewards/types.js';
import { JointRuns } from '../lib/rl/joint-runs.js';
import { type TrainOptions, train } from '../lib/training/train.js';
import { fixture, scratch, writeRows } from './support/runs.js';
import { tinySoups, tinySteps } from './support/soups.js';

const { path } = scratch();
const f = fixture('mistral');
let count = 0;
const prompts = writeRows(
  path('prompts.jsonl'),
  f.rows.map(({ prompt }) => ({ prompt })),
);
const wish = (name: string, pattern: string) => ({
  name,
  rewards: [{ type: 'pattern' as const, pattern, count: true }],
});
const config = (soups: object = {}): Config => ({
  ...tinySoups(prompts),
  train: { ...tinySteps, steps: 6, learning_rate: 0.02, log_every: 1, save_every: 2 },
  soups: {
    wishes: [wish('a', '[a-m]'), wish('n', '[n-z]'), wish('e', '[aeiou]')],
    grid: 1,
    ...soups,
  } as Config['soups'],
  output: path(`run-${count++}`),
});
const run = (given: Config, options: TrainOptions = {}) => train(given, { quiet: true, ...options });
const expert = (given: Config, name: string) => `${given.output}/experts/${name}`;
const adapterOf = (dir: string) => readFileSync(`${dir}/adapter/adapter_model.safetensors`).toString('latin1');
const metricsOf = (dir: string) => readFileSync(`${dir}/metrics.jsonl`, 'utf8');

function expectSame(one: Config, other: Config) {
  for (const name of ['a', 'n', 'e']) {
    expect(metricsOf(expert(one, name))).toBe(metricsOf(expert(other, name)));
    expect(adapterOf(expert(one, name)) === adapterOf(expert(other, name)), name).toBe(true);
  }
  const [a, n] = ['a', 'n'].map((name) => adapterOf(expert(one, name)));
  expect(a === n).toBe(false);
  const results = [one, other].map(({ output }) => readFileSync(`${output}/soups.json`, 'utf8'));
  expect(results[0]).toBe(results[1]);
}
const with_ = (given: Config, together: number): Config => ({
  ...given,
  soups: { ...given.soups!, side_by_side: together },
  output: path(`run-${count++}`),
});

describe('experts side by side', () => {
  it.each([
    ['rloo', {}],
    ['grpo', { grpo: { group_size: 2 } }],
    ['ppo', { ppo: { epochs: 2, minibatches: 2 } }],
  ] as const)('come to the bits that they come to alone: %s', async (method, more) => {
    const { rloo: _, ...rest } = config({ method });
    const given = { ...rest, ...(method === 'rloo' ? { rloo: { group_size: 2 } } : more) } as Config;
    const [alone, together] = [with_(given, 1), with_(given, 3)];
    await run(alone);
    const loads = vi.spyOn(Model, 'load');
    await run(together);
    // One base for the judge and all experts.
    expect(loads).toHaveBeenCalledTimes(1);
    loads.mockRestore();
    expectSame(alone, together);
  });

  it('also where there are fewer places than experts, and where they are stopped and go on', async () => {
    const given = config();
    given.soups!.wishes[1] = { name: 'n', rewards: [{ type: 'function', name: 'long' }] };
    const [alone, together] = [with_(given, 1), with_(given, 2)];
    const long = (samples: readonly Sample[]) => samples.map(({ completion }) => completion.length);
    await run(alone, { rewards: { 'n-long': long } });
    const stop = new AbortController();
    let calls = 0;
    const stopping = (samples: readonly Sample[]) => {
      // In a step of one of two runs beside each other.
      if (++calls === 5) stop.abort();
      return long(samples);
    };
    const stopped = run(together, { rewards: { 'n-long': stopping }, stop: stop.signal });
    await expect(stopped).rejects.toMatchObject({ code: 'ABORTED' });
    for (const name of ['a', 'n']) expect(existsSync(`${expert(together, name)}/checkpoints`)).toBe(true);
    expect(existsSync(expert(together, 'e'))).toBe(false);
    // How many go at a time may change.
    const more = { ...together, soups: { ...together.soups!, side_by_side: 3 } };
    await run(more, { rewards: { 'n-long': long }, resume: true });
    expectSame(alone, together);
  });

  it('save what is done where one fails, and say why', async () => {
    const given = with_(config(), 3);
    // No checkpoint but that of the stop.
    given.train = { ...given.train, save_every: null };
    given.soups!.wishes[1] = { name: 'n', rewards: [{ type: 'function', name: 'odd', normalise: false, bound: 100 }] };
    let calls = 0;
    const odd = (samples: readonly unknown[]) => {
      if (++calls > 4) throw new Error('it broke');
      return samples.map((_, i) => i + calls);
    };
    const rewards = { 'n-odd': odd };
    await expect(run(given, { rewards })).rejects.toThrow(/n-odd.*it broke/);
    for (const name of ['a', 'e']) expect(readdirSync(`${expert(given, name)}/checkpoints`), name).toEqual(['step-4']);
  });

  it('are refused with adapters that share, and as company of what does not sample or is of another base', async () => {
    const shared = with_(config(), 2);
    shared.adapter = { r: 2, alpha: 4, share: 'b' };
    await expect(run(shared)).rejects.toMatchObject({
      code: 'BAD_CONFIG',
      message: expect.stringMatching(/soups\.side_by_side: found 2 with adapter\.share b.*needs adapter\.share: none/),
    });
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const beside = { model, generate };
    const refused = (given: Config, text: RegExp) =>
      expect(run(given, { beside })).rejects.toMatchObject({
        code: 'BAD_ARGUMENT',
        message: expect.stringMatching(text),
      });
    await refused(config(), /beside: method soups does not sample/);
    const { soups: _, ...rest } = config();
    const one: Config = { ...rest, method: 'rloo', rewards: [{ type: 'length', unit: 'characters' }] };
    const other = fixture('qwen2').model;
    await refused({ ...one, model: other }, /beside has .*mistral.* in float32, but the run is of .*qwen2/);
    await refused({ ...one, train: { ...one.train, dtype: 'bf16' } }, /but the run is of bfloat16/);
    expect((await run(one, { beside })).finished).toBe(true);
  });
});

describe('taking turns', () => {
  it('asks one generation for all, and lets one run go on at a time', async () => {
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const ask = (seed: number) => [
      { prompt: Int32Array.of(3, 9, 4), maxNewTokens: 5, temperature: 1, seed, policy: -1 },
    ];
    const alone = await Promise.all([1, 2, 3].map((seed) => generate(model, null, ask(seed))));
    const order: string[] = [];
    const company = new JointRuns(model);
    const said = await company.all(
      [1, 2, 3].map((seed) => async ({ generate: say }) => {
        order.push(`${seed} begins`);
        await new Promise((resolve) => setTimeout(resolve, 5));
        order.push(`${seed} asks`);
        const found = await say(model, null, ask(seed));
        order.push(`${seed} heard`);
        await new Promise((resolve) => setTimeout(resolve, 5));
        order.push(`${seed} ends`);
        return found;
      }),
    );
    expect(said).toEqual(alone);
    const steps = (words: string[]) => [1, 2, 3].flatMap((seed) => words.map((word) => `${seed} ${word}`));
    expect(order).toEqual([...steps(['begins', 'asks']), ...steps(['heard', 'ends'])]);
    expect(await company.all([])).toEqual([]);
  });

  it('refuses a run that asks before it is answered, and goes on with others afterwards', async () => {
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const ask = [{ prompt: Int32Array.of(3, 9, 4), maxNewTokens: 3, temperature: 1, seed: 1, policy: -1 }];
    const runs = new JointRuns(model);
    const patient = async ({ generate: say }: { generate: typeof generate }) => {
      await new Promise((resolve) => setTimeout(resolve, 5));
      return say(model, null, ask);
    };
    const hasty = ({ generate: say }: { generate: typeof generate }) =>
      Promise.all([say(model, null, ask), say(model, null, ask)]).then(([said]) => said);
    await expect(runs.all([patient, hasty, patient])).rejects.toMatchObject({ code: 'BUSY' });
    await expect(runs.all([hasty])).rejects.toMatchObject({ code: 'BUSY' });
    const own = await generate(model, null, ask);
    // One that leaves before it is answered keeps nobody waiting.
    const leaving = async ({ generate: say }: { generate: typeof generate }) => {
      const bank = Bank.create(model.shape, adapterConfig({ r: 2 }), ['default'], { seed: 1 });
      void say(model, bank, ask);
      bank.dispose();
      return own;
    };
    const both = runs.all([patient, leaving, patient]);
    await expect(runs.all([patient])).rejects.toMatchObject({ code: 'BUSY' });
    expect(await both).toEqual([own, own, own]);
  });

  it('refuses adapters of one size and other scales', async () => {
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const ask = [{ prompt: Int32Array.of(3, 9, 4), maxNewTokens: 3, temperature: 1, seed: 1, policy: 0 }];
    const bank = (given: Partial<AdapterConfig>) =>
      Bank.create(model.shape, adapterConfig({ r: 2, alpha: 4, ...given }), ['default'], { seed: 1 });
    const both = (given: Partial<AdapterConfig>) =>
      new JointRuns(model).all(
        [{}, given].map(
          (one) =>
            ({ generate: say }) =>
              say(model, bank(one), ask),
        ),
      );
    expect(await both({})).toHaveLength(2);
    for (const given of [{ alpha: 8 }, { rslora: true }, { alphaPattern: { q_proj: 1 } }])
      await expect(both(given)).rejects.toMatchObject({
        code: 'BAD_ARGUMENT',
        message: expect.stringMatching(/all of the same modules, ranks and scales/),
      });
  });
});
