// Experts that are trained beside each other over one base: the bits that each comes to alone, in one generation.
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it, vi } from 'vitest';
import type { Config } from '../lib/config/index.js';
import { generate } from '../lib/generation/engine.js';
import { Model } from '../lib/model/model.js';
import type { Sample } from '../lib/rewards/types.js';
import { SideBySide } from '../lib/rl/side-by-side.js';
import { type TrainOptions, train } from '../lib/training/train.js';
import { fixture, scratch, writeRows } from './support/runs.js';

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
  method: 'soups',
  model: f.model,
  data: { train: prompts, eval: prompts },
  adapter: { r: 2, alpha: 4 },
  rollout: { max_new_tokens: 6, reference_samples: 24 },
  rloo: { group_size: 2 },
  train: { steps: 6, batch_size: 3, learning_rate: 0.02, dtype: 'float32', threads: 1, log_every: 1, save_every: 2 },
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
    given.soups!.wishes[1] = { name: 'n', rewards: [{ type: 'function', name: 'odd', normalise: false, bound: 100 }] };
    let calls = 0;
    const odd = (samples: readonly unknown[]) => {
      if (++calls > 6) throw new Error('it broke');
      return samples.map((_, i) => i + calls);
    };
    const rewards = { 'n-odd': odd };
    await expect(run(given, { rewards })).rejects.toThrow(/n-odd.*it broke/);
    expect(existsSync(`${expert(given, 'a')}/checkpoints`)).toBe(true);
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
    const company = new SideBySide(model);
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
});
