// Generation: what a sequence says depends on its own request alone; log-probabilities are those of scoring; mixes; stops.
import { describe, expect, it } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { savePeft } from '../lib/adapters/peft.js';
import { Random } from '../lib/base/random.js';
import { pack } from '../lib/data/pack.js';
import type { Group } from '../lib/data/types.js';
import { generate, stream } from '../lib/generation/engine.js';
import { logpsUnder } from '../lib/generation/reference.js';
import type { SequenceRequest } from '../lib/generation/request.js';
import { TextWatch } from '../lib/generation/stop.js';
import { mergeExperts } from '../lib/merge/index.js';
import type { Model } from '../lib/model/model.js';
import type { LogitMix } from '../lib/native/generation.js';
import { addon } from '../lib/native/loader.js';
import { fixtures, frozen, randomBank, tinyModel } from './support/engine.js';
import { program, scratch } from './support/runs.js';

const { path } = scratch();
const ids = (random: Random, n: number) => Int32Array.from({ length: n }, () => 3 + (random.next() % 250));

/** Requests of all kinds: greedy and drawn, cut and penalised, under the base and two adapters. */
function requests(count: number, seed = 1): SequenceRequest[] {
  const random = new Random(seed);
  const kinds: Partial<SequenceRequest>[] = [
    {},
    { temperature: 1 },
    { temperature: 0.7, topK: 9 },
    { temperature: 1.3, topP: 0.8, minP: 0.02 },
    { temperature: 1, repetitionPenalty: 1.4 },
    { temperature: 1, policy: { adapters: [0, 1], weights: [0.3, 0.7] } },
  ];
  return Array.from({ length: count }, (_, i) => ({
    prompt: ids(random, 1 + (random.next() % 30)),
    policy: (i % 3) - 1,
    seed: i,
    maxNewTokens: 1 + (random.next() % 24),
    ...kinds[i % kinds.length],
  }));
}

/** Log-probabilities by scoring, of each token of each completion. */
async function scored(model: Model, bank: Bank | null, adapter: number, prompt: Int32Array, completions: Int32Array[]) {
  const group: Group = { index: 0, kind: 'text', prompt, completions, weight: 1, origin: { file: 'x', line: 1 } };
  const p = pack([group], { policies: [frozen(adapter)], read: 'logps' });
  const { values } = await model.score(p, bank, 'logps');
  return completions.map((_, c) => values.slice(p.offsets[c], p.offsets[c + 1]));
}

const largest = (a: ArrayLike<number>, b: ArrayLike<number>) =>
  Math.max(...Array.from(a, (value, i) => Math.abs(value - b[i])));

describe.each(['llama-old', 'mistral', 'qwen3'])('a sequence of %s', (name) => {
  it('says the same whatever else is in the batch, and however the batch is run', async () => {
    using model = await tinyModel(name);
    const bank = randomBank(model, ['x', 'y']);
    const all = requests(18);
    const together = await generate(model, bank, all);
    for (const i of [0, 1, 2, 3, 4, 5, 9, 17]) expect((await generate(model, bank, [all[i]]))[0]).toEqual(together[i]);
    // Few at a time; one at a time, for want of memory; another order; one token for each call.
    expect(await generate(model, bank, all, { batch: 3 })).toEqual(together);
    const probe = addon().createGeneration(model.native, { rows: 1, memory: 0, stopTokens: new Int32Array() });
    expect(await generate(model, bank, all, { memory: 2 * probe.bytes(54) })).toEqual(together);
    expect((await generate(model, bank, [...all].reverse())).reverse()).toEqual(together);
    const twice = await generate(model, bank, [...all, ...all]);
    expect(twice.slice(18)).toEqual(together);
    using single = await tinyModel(name, 1);
    expect(await generate(single, bank, all)).toEqual(together);
  });

  it('has the log-probabilities that scoring finds, under its own policy', async () => {
    using model = await tinyModel(name);
    const bank = randomBank(model, ['x', 'y']);
    const asked = requests(12).map((r) => ({
      ...r,
      temperature: 1,
      policy: typeof r.policy === 'number' ? r.policy : 0,
      maxNewTokens: 12,
    }));
    const made = await generate(model, bank, asked);
    for (const [i, { tokens, logps }] of made.entries()) {
      const [own] = await scored(model, bank, asked[i].policy, asked[i].prompt, [tokens]);
      expect(largest(logps, own), `sequence ${i}`).toBeLessThan(2e-5);
    }
  });
});

describe.each([
  'float32',
  'bf16',
] as const)('with rows enough that each thread goes on with sequences of its own (%s)', (dtype) => {
  it('says the same on any number of threads, and as in small company', async () => {
    const few = requests(18);
    const many = Array.from({ length: 90 }, (_, i) => few[i % few.length]);
    using one = await tinyModel('llama-old', 1, dtype);
    const bank = randomBank(one, ['x', 'y']);
    const expected = await generate(one, bank, few);
    for (const threads of [1, 2, 3]) {
      using model = await tinyModel('llama-old', threads, dtype);
      const made = await generate(model, bank, many);
      for (const [i, sequence] of made.entries())
        expect(sequence, `${threads}, ${i}`).toEqual(expected[i % few.length]);
    }
  });
});

describe('in bfloat16', () => {
  it('a sequence says the same whatever else is in the batch, on one thread and two', async () => {
    using model = await tinyModel('llama-old', 2, 'bf16');
    const bank = randomBank(model, ['x', 'y']);
    const all = requests(18);
    const together = await generate(model, bank, all);
    for (const i of [0, 1, 2, 3, 4, 5, 9, 17]) expect((await generate(model, bank, [all[i]]))[0]).toEqual(together[i]);
    expect(await generate(model, bank, all, { batch: 3 })).toEqual(together);
    using single = await tinyModel('llama-old', 1, 'bf16');
    expect(await generate(single, bank, all)).toEqual(together);
  });

  it('steps, which read adapters packed, find what scoring finds, rounding where it rounds', async () => {
    using model = await tinyModel('llama-old', 2, 'bf16');
    const bank = randomBank(model, ['x', 'y']);
    const asked = requests(12).map((r) => ({ ...r, temperature: 1, policy: 1, maxNewTokens: 12 }));
    const made = await generate(model, bank, asked);
    let [apart, away, count] = [0, 0, 0];
    for (const [i, { tokens, logps }] of made.entries()) {
      const [own] = await scored(model, bank, 1, asked[i].prompt, [tokens]);
      const [base] = await scored(model, bank, -1, asked[i].prompt, [tokens]);
      own.forEach((logp, t) => {
        apart += Math.abs(logp - logps[t]);
        away += Math.abs(logp - base[t]);
        count++;
      });
    }
    // Keys and values that are not rounded put them 0.01 apart; the adapters say something else than the base does.
    expect(apart / count).toBeLessThan(1e-4);
    expect(away / count).toBeGreaterThan(0.2);
  });
});

describe('the temperature', () => {
  it('divides the logits in log-probabilities too', async () => {
    using model = await tinyModel('llama-old');
    const prompt = Int32Array.of(5, 9, 40);
    const every = Array.from({ length: model.config.vocabSize }, (_, i) => Int32Array.of(i));
    const plain = (await scored(model, null, -1, prompt, every)).map((l) => l[0] / 0.5);
    const total = Math.log(plain.reduce((sum, l) => sum + Math.exp(l), 0));
    const asked = Array.from({ length: 20 }, (_, seed) => ({
      prompt,
      seed,
      temperature: 0.5,
      topK: 50,
      maxNewTokens: 1,
    }));
    for (const { tokens, logps } of await generate(model, null, asked))
      expect(logps[0]).toBeCloseTo(plain[tokens[0]] - total, 4);
  });
});

describe('the base', () => {
  it('scores samples as they score themselves, at their temperatures', async () => {
    using model = await tinyModel('llama-old');
    const bank = randomBank(model, ['x', 'y']);
    const asked = requests(12).map((r) => ({ ...r, policy: -1, maxNewTokens: 12 }));
    const made = await generate(model, bank, asked);
    const again = await logpsUnder(model, bank, -1, asked, made);
    for (const [i, { logps }] of made.entries()) expect(largest(logps, again[i]), `sample ${i}`).toBeLessThan(2e-5);
    const other = await logpsUnder(model, bank, 0, asked, made);
    expect(largest(made[0].logps, other[0])).toBeGreaterThan(0.01);
    const nothing = [{ prompt: Int32Array.of(3), maxNewTokens: 0 }];
    const none = await generate(model, bank, nothing);
    expect(none).toEqual([{ tokens: new Int32Array(), logps: new Float32Array(), text: '', reason: 'length' }]);
    expect(await logpsUnder(model, bank, -1, nothing, none)).toEqual([new Float32Array()]);
  });
});

describe('mixes', () => {
  it('of updates are the concatenation, and one-hot weights one expert', async () => {
    using model = await tinyModel('llama-old');
    await savePeft(randomBank(model, ['x'], { r: 2, alpha: 3 }), 'x', path('x'));
    const other = { r: 5, alpha: 4, rslora: true, targets: ['q_proj', 'down_proj'] };
    await savePeft(randomBank(model, ['y'], { ...other, targets: 'all-linear' }), 'y', path('y'));
    const experts = ['x', 'y'].map((n) => ({ name: n, dir: path(n) }));
    await mergeExperts({ experts, weights: { x: 0.3, y: 0.7 }, method: 'cat', output: path('cat') });
    const mixed = await Bank.fromPeft(model.shape, experts, [
      { name: 'mix', weights: [0.3, 0.7] },
      { name: 'hot', weights: [0, 1] },
    ]);
    const cat = await Bank.fromPeft(model.shape, [{ name: 'cat', dir: path('cat') }]);
    const prompt = Int32Array.of(5, 9, 40, 17);
    const completion = ids(new Random(4), 20);
    const of = async (bank: Bank, adapter: number) => (await scored(model, bank, adapter, prompt, [completion]))[0];
    expect(largest(await of(mixed, mixed.adapterIndex('mix')), await of(cat, 0))).toBeLessThan(1e-5);
    expect(largest(await of(mixed, mixed.adapterIndex('hot')), await of(mixed, 1))).toBeLessThan(1e-5);
    expect(largest(await of(mixed, 0), await of(mixed, 1))).toBeGreaterThan(0.01);
    const draw = { prompt, temperature: 1, maxNewTokens: 20 };
    const [mine, merged] = [
      (await generate(model, mixed, [{ ...draw, policy: mixed.adapterIndex('mix') }]))[0],
      (await generate(model, cat, [{ ...draw, policy: 0 }]))[0],
    ];
    expect(mine.tokens).toEqual(merged.tokens);
    // The same with weights of a layer's own, in one mix beside another.
    const layers = [{ layers: [0, 0], weights: { x: 1.2, y: -0.5 } }] as const;
    const given = { experts, weights: { x: 0.3, y: 0.7 }, layerWeights: layers };
    await mergeExperts({ ...given, method: 'cat', output: path('layers') });
    const byLayer = await Bank.fromPeft(model.shape, experts, [
      { name: 'mix', weights: [0.3, 0.7] },
      { name: 'layers', weights: [0.3, 0.7], blocks: [{ first: 0, last: 0, weights: [1.2, -0.5] }] },
    ]);
    const folded = await Bank.fromPeft(model.shape, [{ name: 'layers', dir: path('layers') }]);
    const apart = await of(byLayer, byLayer.adapterIndex('layers'));
    expect(largest(apart, await of(folded, 0))).toBeLessThan(1e-5);
    expect(largest(apart, await of(byLayer, byLayer.adapterIndex('mix')))).toBeGreaterThan(0.01);
    await expect(
      Bank.fromPeft(model.shape, experts, [
        { name: 'm', weights: [1, 0], blocks: [{ first: 0, last: 0, weights: [1] }] },
      ]),
    ).rejects.toThrow(/expected 2 finite weights/);
    await expect(Bank.fromPeft(model.shape, experts, [{ name: 'm', weights: [1] }])).rejects.toThrow(
      /expected 2 finite weights/,
    );
  });

  it('of distributions are their formulas, and one-hot weights one expert to the bit', async () => {
    using model = await tinyModel('llama-old');
    const bank = randomBank(model, ['x', 'y']);
    const prompt = Int32Array.of(5, 9, 40, 17);
    const every = Array.from({ length: model.config.vocabSize }, (_, i) => Int32Array.of(i));
    const own = await Promise.all(
      [0, 1].map(async (a) => (await scored(model, bank, a, prompt, every)).map((l) => l[0])),
    );
    const w = [0.3, 0.7];
    const formula: Record<LogitMix, (v: number) => number> = {
      'reverse-kl': (v) => w[0] * own[0][v] + w[1] * own[1][v],
      'forward-kl': (v) => -Math.log(w[0] / Math.exp(own[0][v]) + w[1] / Math.exp(own[1][v])),
      alpha: (v) => Math.log(w[0] * Math.exp(-0.5 * own[0][v]) + w[1] * Math.exp(-0.5 * own[1][v])) / -0.5,
    };
    for (const mix of Object.keys(formula) as LogitMix[]) {
      const logits = every.map((_, v) => formula[mix](v));
      const total = Math.log(logits.reduce((sum, l) => sum + Math.exp(l), 0));
      const policy = { adapters: [0, 1], weights: [3, 7], mix, alpha: 0.5 };
      const asked = Array.from({ length: 30 }, (_, seed) => ({
        prompt,
        seed,
        temperature: 1,
        maxNewTokens: 1,
        policy,
      }));
      for (const { tokens, logps } of await generate(model, bank, asked))
        expect(logps[0], mix).toBeCloseTo(logits[tokens[0]] - total, 4);
      const draw = { prompt, temperature: 1, maxNewTokens: 20 };
      const hot = { adapters: [0, 1, -1], weights: [0, 1, 0], mix };
      const [mine, expert] = await generate(model, bank, [
        { ...draw, policy: hot },
        { ...draw, policy: 1 },
      ]);
      expect(mine).toEqual(expert);
    }
    for (const [policy, text] of [
      [{ adapters: [0, 1], weights: [1] }, /2 adapters and 1 weights/],
      [{ adapters: [0, 1], weights: [0, 0] }, /add up to 0/],
      [{ adapters: [0, 1], weights: [1, Number.NaN] }, /a weight is NaN/],
      [{ adapters: [0, 1], weights: [2, -1], mix: 'forward-kl' as const }, /no negative/],
      [{ adapters: [0, 5], weights: [1, 1] }, /no adapter 5/],
    ] as const)
      await expect(generate(model, bank, [{ prompt, policy }])).rejects.toMatchObject({
        code: 'BAD_ARGUMENT',
        message: expect.stringMatching(text),
      });
  });
});

describe('text as it comes', () => {
  const bytes = (text: string) => [...new TextEncoder().encode(text)];
  const decode = (tokens: ArrayLike<number>) => new TextDecoder().decode(Uint8Array.from(tokens));

  it.each([1, 2, 3, 7])('in runs of %d bytes stops at a stop string, inside characters as outside', (run) => {
    for (const [text, stops, before, kept] of [
      ['a→b', ['→'], 'a', 4],
      ['naïve → end', ['ï'], 'na', 4],
      ['one\n\nUser: two', ['\n\nUser', '\n\nBot'], 'one', 9],
      ['aab', ['ab'], 'a', 3],
      ['plain', ['x'], 'plain', 5],
      ['日本語', ['本'], '日', 6],
      ['x🙂y🙂', ['y'], 'x🙂', 6],
    ] as const) {
      const watch = new TextWatch(decode, [...stops]);
      const all = bytes(text);
      let [shown, count] = ['', 0];
      for (let at = 0; at < all.length && !watch.stopped; at += run) {
        count = watch.take(all.slice(0, at + run), Math.min(at, all.length));
        shown += watch.show(false);
      }
      shown += watch.show(true);
      expect([shown, watch.text, count], text).toEqual([before, before, kept]);
    }
  });

  it('never shows half a character, and at the end whatever there is', () => {
    const watch = new TextWatch(decode);
    const shown = bytes('é€').map((_, i, all) => {
      watch.take(all.slice(0, i + 1), i);
      return watch.show(false);
    });
    expect(shown).toEqual(['', 'é', '', '', '€']);
    const cut = new TextWatch(decode);
    cut.take(bytes('€').slice(0, 2), 0);
    expect([cut.show(false), cut.show(true)]).toEqual(['', '\uFFFD']);
    expect(() => new TextWatch(decode, [''])).toThrow(/empty/);
  });

  it('is the whole text, and a stop string cuts tokens and log-probabilities alike', async () => {
    using model = await tinyModel('llama-old');
    const asked = requests(6, 3).map(({ prompt, seed }) => ({ prompt, seed, temperature: 1, maxNewTokens: 30 }));
    const whole = await generate(model, null, asked);
    const parts = asked.map(() => '');
    for await (const part of stream(model, null, asked)) {
      parts[part.index] += part.text;
      if (part.done) expect(part.done).toEqual(whole[part.index]);
    }
    expect(parts).toEqual(whole.map(({ text }) => text));
    // A stop string from the middle of the first text.
    const { text } = whole[0];
    const stop = text.slice(Math.floor(text.length / 2), Math.floor(text.length / 2) + 2);
    const cut = await generate(model, null, asked, { stop: [stop] });
    cut.forEach((c, i) => {
      const at = whole[i].text.indexOf(stop);
      expect(c.text).toBe(at === -1 ? whole[i].text : whole[i].text.slice(0, at));
      expect(c.tokens).toEqual(whole[i].tokens.slice(0, c.tokens.length));
      expect(c.logps).toEqual(whole[i].logps.slice(0, c.tokens.length));
      if (at !== -1) expect(c.reason).toBe('stop');
    });
    expect(cut[0].tokens.length).toBeLessThan(whole[0].tokens.length);
  });
});

describe('what does not fit', () => {
  it('is refused with what it needs, before anything is allocated', async () => {
    using model = await tinyModel('llama-old');
    const { maxPositions } = model.config;
    const prompt = Int32Array.of(5);
    await expect(generate(model, null, [{ prompt, maxNewTokens: 100 }], { memory: 1e4 })).rejects.toMatchObject({
      code: 'OUT_OF_MEMORY',
      message: expect.stringMatching(/a prompt of 1 and 100 new tokens under 1 policy take 0.\d MB, free are 0.0 MB/),
    });
    const long = new Int32Array(maxPositions).fill(5);
    await expect(generate(model, null, [{ prompt: long }])).rejects.toMatchObject({
      code: 'BAD_ARGUMENT',
      message: expect.stringMatching(/do not fit the model's/),
    });
    expect(await generate(model, null, [])).toEqual([]);
    const abort = Int32Array.of(1);
    await expect(generate(model, null, [{ prompt }], { abort })).rejects.toMatchObject({ code: 'ABORTED' });
  });
});

describe('pluralign generate', () => {
  it('takes several prompts, weights, stops and streams', async () => {
    using model = await tinyModel('llama-old');
    const bank = randomBank(model, ['calm', 'short']);
    for (const name of ['calm', 'short']) await savePeft(bank, name, path('cli', name));
    const base = ['--model', `${fixtures}/parity-llama-old/model`, '--dtype', 'float32'];
    const adapters = ['--adapter', path('cli', 'calm'), '--adapter', path('cli', 'short')];
    const json = async (...argv: string[]) =>
      JSON.parse((await program('generate', ...base, ...argv, '--json')).stdout);
    const mix = ['--weights', 'calm=0.3,short=0.7', '--prompt', 'ab', '--max-new-tokens', '9'];
    const one = await json(...adapters, ...mix, '--base-logps', '--seed', '4');
    expect(one.samples[0].base_logps).toHaveLength(one.samples[0].tokens);
    expect(one.samples[0].base_logps).not.toEqual(one.samples[0].logps);
    expect(one.samples).toHaveLength(1);
    expect(one.samples[0]).toMatchObject({ policy: 'mix', seed: 4, reason: expect.stringMatching(/eos|length/) });
    expect(one.samples[0].logps).toHaveLength(one.samples[0].tokens);
    expect(one.samples[0].ids).toHaveLength(one.samples[0].tokens);
    const many = await json(...adapters, ...mix, '--prompt', 'c', '--samples', '2', '--seed', '4');
    expect(many.prompts).toEqual(['ab', 'c']);
    expect(many.samples.map((s: { prompt: number; seed: number }) => [s.prompt, s.seed])).toEqual([
      [0, 4],
      [0, 5],
      [1, 4],
      [1, 5],
    ]);
    expect(many.samples[0].text).toBe(one.samples[0].text);
    // One-hot over distributions is that expert.
    const hot = await json(
      ...adapters,
      '--prompt',
      'ab',
      '--max-new-tokens',
      '9',
      '--weights',
      'calm=0,short=1',
      '--mix',
      'reverse-kl',
    );
    const expert = await json('--adapter', path('cli', 'short'), '--prompt', 'ab', '--max-new-tokens', '9');
    expect(hot.samples[0].text).toBe(expert.samples[0].text);
    const streamed = await program('generate', ...base, ...adapters, ...mix, '--seed', '4', '--stream');
    const plain = await program('generate', ...base, ...adapters, ...mix, '--seed', '4');
    expect(streamed.stdout).toBe(plain.stdout);
    for (const [argv, text] of [
      [['--weights', 'calm=1'], /'short' has none/],
      [['--weights', 'calm=0,short=0'], /all are zero/],
      [['--mix', 'reverse-kl'], /needs weights/],
      [['--mix-alpha', '2', '--weights', 'calm=1,short=1'], /belongs to mix alpha/],
      [['--stop', ''], /not empty/],
      [['--min-p', '2'], /from 0 to 1/],
      [['--stream'], /prints one sample/],
    ] as const) {
      const refused = await program('generate', ...base, ...adapters, '--prompt', 'ab', ...argv);
      expect([refused.status, refused.stderr]).toEqual([2, expect.stringMatching(text)]);
    }
    const long = await program('generate', ...base, '--prompt', 'a b '.repeat(200));
    expect([long.status, long.stderr]).toEqual([2, expect.stringMatching(/--prompt has \d+ tokens, the model takes/)]);
  });
});
