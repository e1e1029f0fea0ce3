// Runs of policies that learn from their own samples: they learn, go on after a stop to the bit, and refuse early.
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { Random } from '../lib/base/random.js';
import type { Config } from '../lib/config/index.js';
import { pack } from '../lib/data/pack.js';
import { Model } from '../lib/model/model.js';
import type { RewardFunction } from '../lib/rewards/types.js';
import { tokenScores } from '../lib/rl/rollout.js';
import { minibatches } from '../lib/rl/update.js';
import { type TrainOptions, train } from '../lib/training/train.js';
import { fixture, scratch, writeRows } from './support/runs.js';

const { path } = scratch();
const f = fixture('mistral');
let count = 0;
const next = () => path(`run-${count++}`);
const prompts = writeRows(
  path('prompts.jsonl'),
  f.rows.map(({ prompt }) => ({ prompt })),
);

const config = (output: string, changes: Partial<Config> = {}): Config => ({
  method: 'rloo',
  model: f.model,
  data: { train: prompts, eval: prompts },
  adapter: { r: 4, alpha: 8 },
  rewards: [{ type: 'length', name: 'long', unit: 'characters' }],
  rollout: { max_new_tokens: 8, reference_samples: 16 },
  rloo: { group_size: 3, beta: 0.01 },
  output,
  ...changes,
  train: {
    steps: 6,
    batch_size: 4,
    learning_rate: 0.01,
    schedule: 'constant',
    dtype: 'float32',
    threads: 1,
    log_every: 1,
    save_every: 2,
    ...changes.train,
  },
});
const quiet = (given: Config, options: TrainOptions = {}) => train(given, { quiet: true, ...options });
const lines = (run: string) =>
  readFileSync(`${run}/metrics.jsonl`, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, number>);
const adapterOf = (run: string) => readFileSync(`${run}/adapter/adapter_model.safetensors`);

const methods: [string, Partial<Config>][] = [
  ['rloo', { rloo: { group_size: 3, beta: 0.01 } }],
  ['rloo, towards a KL', { rloo: { group_size: 3, beta: 0.2, target: 0.01, horizon: 50 } }],
  ['rloo, several updates', { rloo: { group_size: 3, epochs: 2, minibatches: 2 } }],
  ['grpo', { method: 'grpo', rloo: null, grpo: { group_size: 3, loss: 'dapo' } }],
  ['reinforce++', { method: 'reinforce++', rloo: null, reinforce: {} }],
  ['ppo', { method: 'ppo', rloo: null, ppo: { epochs: 2, minibatches: 2, beta: 0.05 } }],
];

/** Starts a run again and again, each time with a little more time before it is stopped, until it is done. */
async function interrupted(given: Config, seed: number): Promise<number> {
  const random = new Random(seed);
  for (let stops = 0; ; stops++) {
    const stop = AbortSignal.timeout(20 + stops * 4 + (random.next() % 30));
    try {
      if ((await quiet(given, { stop, resume: true })).finished) return stops;
      expect(existsSync(`${given.output}/adapter`)).toBe(false);
    } catch (error) {
      expect(error).toMatchObject({ code: 'ABORTED' });
    }
  }
}

describe.each(methods)('%s', (_, changes) => {
  it('runs, logs what it measured, and goes on to the bit after stops at any moment', async () => {
    const whole = config(next(), changes);
    const summary = await quiet(whole);
    expect(summary).toMatchObject({ finished: true, steps: 6 });
    const logged = lines(whole.output!);
    const steps = logged.filter((line) => 'loss' in line);
    expect(steps.map((line) => line.step)).toEqual([1, 2, 3, 4, 5, 6]);
    for (const line of steps)
      for (const name of ['reward', 'rewards/long', 'kl', 'entropy', 'completion_length', 'clip_share', 'grad_norm'])
        expect(line[name], name).toBeTypeOf('number');
    // The first rollout is the reference's own.
    expect(Math.abs(steps[0].kl)).toBeLessThan(1e-4);
    expect(steps.slice(1).some((line) => line.kl !== 0)).toBe(true);
    const again = config(next(), changes);
    await interrupted(again, 5);
    expect(readFileSync(`${again.output}/metrics.jsonl`, 'utf8')).toBe(
      readFileSync(`${whole.output}/metrics.jsonl`, 'utf8'),
    );
    expect(adapterOf(again.output!).equals(adapterOf(whole.output!))).toBe(true);
  });
});

describe('learning', () => {
  it('raises its reward, on a reward that can be learnt', async () => {
    const odd: RewardFunction = (samples) =>
      samples.map(({ ids }) => ids.reduce((n, id) => n + (id % 2), 0) / ids.length);
    const given = config(next(), {
      rewards: [{ type: 'function', name: 'odd' }],
      rloo: { group_size: 4, beta: 0.01 },
      train: { steps: 100, batch_size: 6, learning_rate: 0.05 },
    });
    await quiet(given, { rewards: { odd } });
    const rewards = lines(given.output!).flatMap((line) => ('loss' in line ? [line['rewards/odd']] : []));
    const mean = (part: number[]) => part.reduce((a, b) => a + b, 0) / part.length;
    expect(mean(rewards.slice(-8))).toBeGreaterThan(mean(rewards.slice(0, 4)) + 0.15);
  });

  it('does not depend on how a step is cut into packs, but for rounding', async () => {
    const [one, many] = [config(next()), config(next(), { train: { max_tokens_per_pack: 30 } })];
    for (const given of [one, many]) await quiet({ ...given, train: { ...given.train, steps: 1 } });
    const [a, b] = [one, many].map((given) => lines(given.output!)[0]);
    expect(b.grad_norm / a.grad_norm).toBeCloseTo(1, 4);
    expect(b.kl).toBeCloseTo(a.kl, 5);
  });
});

describe('what is trained', () => {
  it('all weights, against the model as it was', async () => {
    const given = config(next(), { adapter: 'full', train: { steps: 3, learning_rate: 0.01 } });
    const { paths } = await quiet(given);
    expect(existsSync(`${paths.model}/model.safetensors`)).toBe(true);
    const kl = lines(given.output!).flatMap((line) => ('loss' in line ? [line.kl] : []));
    expect(Math.abs(kl[0])).toBeLessThan(1e-4);
    expect(Math.abs(kl[2])).toBeGreaterThan(1e-3);
  });

  it('an adapter that goes on from another, which is then the reference', async () => {
    const given = config(next(), {
      adapter: { init_from: f.adapter },
      loss: { reference: 'init_from' },
      train: { steps: 2 },
    });
    await quiet(given);
    const [first] = lines(given.output!).filter((line) => 'loss' in line);
    expect(Math.abs(first.kl)).toBeLessThan(1e-4);
    const other = config(next(), { adapter: { init_from: f.adapter }, train: { steps: 1 } });
    await quiet(other);
    expect(Math.abs(lines(other.output!)[0].kl)).toBeGreaterThan(1e-3);
  });
});

describe('details', () => {
  it('divides logits by the temperature in every log-probability, forward and backward', async () => {
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    const group = {
      index: 0,
      kind: 'text' as const,
      prompt: Int32Array.of(1, 5),
      completions: [Int32Array.of(7, 9, 11)],
      weight: 1,
      origin: { file: 'x', line: 1 },
    };
    const base = { model, bank: null, adapter: -1 };
    const at = (temperature: number) => tokenScores([group], base, 'logps', { temperature, maxTokens: 100 });
    // log softmax(x / T)[y] from the log-probabilities of all tokens at temperature 1.
    const size = model.config.vocabSize;
    const first: number[] = [];
    for (let token = 0; token < size; token++) {
      const other = { ...group, completions: [Int32Array.of(token)] };
      first.push((await tokenScores([other], base, 'logps', { temperature: 1, maxTokens: 100 }))[0]);
    }
    for (const temperature of [0.5, 1.7]) {
      const z = first.map((x) => x / temperature);
      const total = Math.log(z.reduce((s, x) => s + Math.exp(x), 0));
      expect((await at(temperature))[0]).toBeCloseTo(z[7] - total, 4);
    }
    // A sharper policy moves more: the gradient is scaled too.
    const { adapterConfig } = await import('../lib/adapters/config.js');
    const bank = Bank.create(model.shape, adapterConfig({ r: 2, alpha: 4 }), ['default'], { seed: 1 });
    const p = pack([group], { policies: [{ adapter: 0, grad: true }], read: 'logps' });
    const loss = async (temperature: number, keep = false) => {
      const { values } = await model.score(p, bank, 'logps', { keep, temperature });
      return values.reduce((a, b) => a + b, 0);
    };
    const random = new Random(3);
    const direction = Float32Array.from(bank.parameters, () => 0.02 * random.normal());
    for (let i = 0; i < direction.length; i++) bank.parameters[i] += direction[i];
    await loss(0.5, true);
    bank.zeroGrad();
    await model.backward(p, bank, new Float32Array(3).fill(1));
    const slope = bank.gradients.reduce((s, g, i) => s + g * direction[i], 0);
    const before = bank.parameters.slice();
    const along = async (h: number) => {
      bank.parameters.set(before.map((x, i) => x + h * direction[i]));
      return loss(0.5);
    };
    const found = ((await along(0.05)) - (await along(-0.05))) / 0.1;
    expect(found / slope).toBeCloseTo(1, 2);
  });

  it('scores the text up to the first EOS and takes a penalty off answers without one', async () => {
    const seen: { completion: string; ended: boolean; last: number }[] = [];
    const look: RewardFunction = (samples) =>
      samples.map(({ completion, ended, ids }) => {
        seen.push({ completion, ended, last: ids[ids.length - 1] });
        return completion.length;
      });
    const rewards: Config['rewards'] = [{ type: 'function', name: 'look', normalise: false, bound: null }];
    const one = config(next(), {
      rewards,
      rollout: { max_new_tokens: 80, missing_eos_penalty: 0 },
      train: { steps: 1 },
    });
    const two = config(next(), {
      rewards,
      rollout: { max_new_tokens: 80, missing_eos_penalty: 10 },
      train: { steps: 1 },
    });
    await quiet(one, { rewards: { look } });
    await quiet(two, { rewards: { look } });
    const [a, b] = [lines(one.output!)[0], lines(two.output!)[0]];
    // Some answers ended and some did not, or none of this says anything.
    expect(a.ended).toBeGreaterThan(0);
    expect(a.ended).toBeLessThan(1);
    expect(b.ended).toBe(a.ended);
    expect(a.reward - b.reward).toBeCloseTo(10 * (1 - a.ended), 9);
    using model = await Model.load(f.model, { dtype: 'float32', threads: 1 });
    for (const { ended, last } of seen) expect(ended).toBe(model.config.eosIds.includes(last));
    // Nothing of the closing token is in the text that is scored.
    const eos = model.tokenizer.decode(Int32Array.from(model.config.eosIds));
    expect(eos.length).toBeGreaterThan(0);
    for (const { completion } of seen) expect(completion).not.toContain(eos);
  });

  it('starts the critic at 0 of everything', async () => {
    const given = config(next(), { ...methods.at(-1)![1], train: { steps: 1 } });
    await quiet(given);
    const [line] = lines(given.output!);
    // Returns are then the advantages themselves, and the critic explains nothing of them.
    expect(line.explained_variance).toBeCloseTo(0, 9);
    expect(line.value_loss).toBeGreaterThan(0);
  });

  it('shuffles prompts anew in each epoch and leaves none out', () => {
    const random = new Random(1);
    const [one, two] = [minibatches(10, 3, random), minibatches(10, 3, random)];
    for (const parts of [one, two]) expect(parts.flat().sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    expect(one).not.toEqual(two);
    expect(minibatches(2, 5, random).map((part) => part.length)).toEqual([1, 1]);
  });
});

describe('refusals before anything is trained', () => {
  const fn: Config['rewards'] = [{ type: 'function', name: 'mine' }];
  it.each([
    [
      'a reward that throws',
      () => {
        throw new Error('no such word');
      },
      'BAD_ARGUMENT',
      /"mine" threw: no such word/,
    ],
    [
      'a reward of another length',
      () => [1],
      'BAD_ARGUMENT',
      /"mine": found 1 values, expected one number for each of 16/,
    ],
    ['a reward without numbers', () => undefined as never, 'BAD_ARGUMENT', /found undefined/],
    [
      'a reward that is not a number',
      (s: readonly unknown[]) => s.map(() => Number.NaN),
      'NON_FINITE',
      /"mine" is NaN for the completion "/,
    ],
    [
      'a reward that is always the same',
      (s: readonly unknown[]) => s.map(() => 2),
      'BAD_DATA',
      /"mine" is 2 for all 16 samples/,
    ],
  ] as [string, RewardFunction, string, RegExp][])('%s', async (_, mine, code, message) => {
    const output = next();
    await expect(quiet(config(output, { rewards: fn }), { rewards: { mine } })).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message),
    });
    expect(existsSync(output)).toBe(false);
  });

  it.each([
    ['no reward', { rewards: null }, /rewards: found nothing/],
    ['a function that nobody gave', { rewards: fn }, /"mine" is a function, expected train\(config/],
    ['a block of another method', { ppo: {} }, /ppo: belongs to method ppo, but the method is rloo/],
    [
      'a pattern that is none',
      { rewards: [{ type: 'pattern', pattern: '(' }] },
      /rewards\[0\]\.pattern: Invalid regular/,
    ],
    ['a pattern without one', { rewards: [{ type: 'pattern' }] }, /rewards\[0\]\.pattern: found nothing/],
    [
      'one sample a prompt',
      { rloo: { group_size: 1 } },
      /rloo\.group_size: found 1, expected a whole number of at least 2/,
    ],
    ['two rewards of one name', { rewards: [{ type: 'length' }, { type: 'length' }] }, /two rewards are named length/],
    ['dropout', { adapter: { dropout: 0.1 } }, /adapter\.dropout: found 0.1, expected 0/],
    ['an adapter without a head', { rewards: [{ type: 'model', adapter: f.adapter }] }, /has no reward head/],
  ] as [string, Partial<Config>, RegExp][])('%s', async (_, changes, message) => {
    await expect(quiet(config(next(), changes))).rejects.toThrow(message);
  });

  it('prompts without room, and rows without a prompt', async () => {
    await expect(quiet(config(next(), { rollout: { max_new_tokens: 1000000 } }))).rejects.toThrow(
      /no prompt of 6 leaves room for rollout.max_new_tokens/,
    );
    const some = f.rows.map(({ prompt }, i) => ({ prompt: i === 3 ? prompt.repeat(400) : prompt }));
    const data = { train: writeRows(path('long.jsonl'), some) };
    const notes: string[] = [];
    await quiet(config(next(), { data, train: { steps: 1 } }), { onNote: (note) => notes.push(note) });
    expect(notes.join('\n')).toMatch(/1 of 6 prompts leave no room/);
    await expect(quiet(config(next(), { data: { ...data, over_length: 'error' } }))).rejects.toThrow(
      /long.jsonl:4: the prompt has \d+ tokens, expected at most \d+, which leaves room/,
    );
    const rows = writeRows(path('none.jsonl'), [{ text: 'x' }]);
    await expect(quiet(config(next(), { data: { train: rows } }))).rejects.toThrow(
      /none.jsonl, line 1: field "prompt"/,
    );
  });

  it('warns of a reward without a bound', async () => {
    const notes: string[] = [];
    const given = config(next(), {
      rewards: [{ type: 'length', unit: 'characters', bound: null }],
      train: { steps: 1 },
    });
    await quiet(given, { onNote: (note) => notes.push(note) });
    expect(notes.join('\n')).toMatch(/reward "length" has no bound/);
  });
});

it('says that nothing is saved where a stop comes within the first step, and begins anew with --resume', async () => {
  const stop = new AbortController();
  const notes: string[] = [];
  const given = config(next(), {
    data: { train: prompts },
    rewards: [{ type: 'function', name: 'mine', normalise: false }],
  });
  const mine: RewardFunction = (samples) => {
    stop.abort();
    return samples.map((_, i) => i % 2);
  };
  const onNote = (note: string) => void notes.push(note);
  const stopped = await quiet(given, { stop: stop.signal, rewards: { mine }, onNote });
  expect(stopped).toMatchObject({ finished: false, steps: 0 });
  expect(notes.filter((note) => note.startsWith('stopped'))).toEqual([
    'stopped before the first step, and nothing is saved: --resume begins anew',
  ]);
  expect(existsSync(`${given.output}/checkpoints`)).toBe(false);
  expect(await quiet(given, { resume: true, rewards: { mine } })).toMatchObject({ finished: true, steps: 6 });
});
