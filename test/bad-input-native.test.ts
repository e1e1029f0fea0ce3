// What the engine refuses, through the calls a user makes: one error class, a stable code, and a model that goes on working.
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { pack } from '../lib/data/pack.js';
import { Model } from '../lib/model/model.js';
import { readSafetensors, type Tensor, writeSafetensors } from '../lib/model/safetensors.js';
import type { NativeBank, NativeBankLayout } from '../lib/native/addon.js';
import { addon } from '../lib/native/loader.js';
import { fixtures, frozen, learning, randomBank, randomGroups, tinyModel } from './support/engine.js';
import { refuses } from './support/refuses.js';

let folder: string;
let model: Model;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'pluralign-bad-'));
  model = await tinyModel('qwen3');
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const source = join(fixtures, 'parity-qwen3', 'model');
let copies = 0;
function copy(): string {
  const dir = join(folder, `model-${copies++}`);
  cpSync(source, dir, { recursive: true });
  return dir;
}

describe('model folders', () => {
  const weights = readFileSync(join(source, 'model.safetensors'));
  const load = (dir: string, dtype: 'float32' | 'bf16' = 'float32') => Model.load(dir, { dtype, threads: 1 });

  it.each([0, 7, 8, 100, 4096, weights.length - 1])('weights cut off after %d bytes', async (length) => {
    const dir = copy();
    writeFileSync(join(dir, 'model.safetensors'), weights.subarray(0, length));
    await refuses(() => load(dir), 'BAD_FILE', /model\.safetensors/);
  });

  const hostile = (header: string, data = 64, length = BigInt(Buffer.byteLength(header))) => {
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(length);
    return Buffer.concat([size, Buffer.from(header), Buffer.alloc(data)]);
  };
  const entry = (shape: string, from: number | string, to: number | string) =>
    `{"model.norm.weight":{"dtype":"F32","shape":${shape},"data_offsets":[${from},${to}]}}`;
  it.each([
    ['a header length of 2^64 - 1', hostile('{}', 0, 2n ** 64n - 1n)],
    ['a header beyond the file', hostile('{}', 0, 90_000_000n)],
    ['data beyond the file', hostile(entry('[32]', 0, 128))],
    ['negative offsets', hostile(entry('[16]', -64, 0))],
    ['offsets that overflow', hostile(entry('[16]', 0, '18446744073709551680'))],
    ['a shape whose size overflows', hostile(entry('[4294967296,4294967296,4]', 0, 64))],
    ['a negative shape', hostile(entry('[-16]', 0, 64))],
    ['nesting without end', hostile(`{"a":${'['.repeat(100_000)}`)],
    ['no JSON', hostile('{model')],
  ])('weights with %s', async (_, bytes) => {
    const dir = copy();
    writeFileSync(join(dir, 'model.safetensors'), bytes);
    await refuses(() => load(dir), 'BAD_FILE', /model\.safetensors/);
  });

  async function changed(change: (tensors: Map<string, Tensor>) => void): Promise<string> {
    const dir = copy();
    const { tensors } = readSafetensors(join(source, 'model.safetensors'));
    change(tensors);
    const list = [...tensors].map(([name, tensor]) => ({ name, ...tensor }));
    await writeSafetensors(join(dir, 'model.safetensors'), list);
    return dir;
  }

  it('a tensor that is missing, or has another shape', async () => {
    const name = 'model.layers.1.mlp.up_proj.weight';
    await refuses(async () => load(await changed((t) => t.delete(name))), 'BAD_FILE', /model\.layers\.1\.mlp\.up_proj/);
    const wrong = (shape: number[]) =>
      changed((t) => t.set(name, { shape, data: new Float32Array(shape.reduce((a, b) => a * b, 1)) }));
    for (const shape of [[36, 31], [32, 36], [36 * 32], [36, 32, 1], []])
      await refuses(async () => load(await wrong(shape)), 'BAD_SHAPE', /up_proj\.weight has shape .*\[36, 32\]/);
  });

  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])('a weight that is %d', async (value) => {
    for (const name of ['model.layers.0.self_attn.q_proj.weight', 'model.norm.weight'])
      for (const dtype of ['float32', 'bf16'] as const) {
        const dir = await changed((t) => {
          t.get(name)!.data[3] = value;
        });
        await refuses(() => load(dir, dtype), 'BAD_FILE', new RegExp(`${name}.*(NaN|infinity|finite)`));
      }
  });

  it('a tokenizer larger than the embedding', async () => {
    const dir = await changed((t) => {
      const { data } = t.get('model.embed_tokens.weight')!;
      t.set('model.embed_tokens.weight', { shape: [100, 32], data: data.slice(0, 3200) });
    });
    const config = JSON.parse(readFileSync(join(dir, 'config.json'), 'utf8'));
    writeFileSync(join(dir, 'config.json'), JSON.stringify({ ...config, vocab_size: 100 }));
    await refuses(() => load(dir), 'BAD_FILE', /tokenizer has \d+ ids, the embedding 100 rows/);
  });

  it('weights that are a folder, or a shard that is not there', async () => {
    const dir = copy();
    rmSync(join(dir, 'model.safetensors'));
    writeFileSync(
      join(dir, 'model.safetensors.index.json'),
      JSON.stringify({ weight_map: { 'model.norm.weight': 'a.safetensors' } }),
    );
    await refuses(() => load(dir), 'NOT_FOUND', /a\.safetensors/);
    mkdirSync(join(dir, 'model.safetensors'));
    await refuses(() => load(dir), 'BAD_FILE', /model\.safetensors.*regular file/);
  });

  it.each([0, -1, 1.5, Number.NaN, 1e9])('%d threads', async (threads) => {
    await refuses(() => Model.load(source, { threads }), 'BAD_ARGUMENT', /threads/);
  });

  it('a configuration whose numbers make no sense', async () => {
    const good = model.shape;
    for (const bad of [
      { hiddenSize: 0 },
      { layers: Number.NaN },
      { heads: 2.5 },
      { vocabSize: 2 ** 40 },
      { kvHeads: 3 },
      { headDim: 15 },
      { slidingWindow: -1 },
      { ropeInverseFrequencies: new Float64Array(3) },
      { ropeInverseFrequencies: [1] },
      { normEps: 'small' },
    ])
      await refuses(
        () => addon().emptyModel({ ...good, ...bad } as never, { dtype: 'float32', threads: 1 }),
        'BAD_ARGUMENT',
      );
    await refuses(() => addon().emptyModel(good, { dtype: 'float64' as never, threads: 1 }), 'BAD_ARGUMENT', /float64/);
    await refuses(() => addon().loadModel(good, 'x' as never, { dtype: 'float32', threads: 1 }), 'BAD_ARGUMENT');
    await refuses(() => addon().loadModel(good, [], { dtype: 'float32', threads: 1 }), 'NOT_FOUND');
  });
});

describe('adapters', () => {
  it('of another base', async () => {
    await refuses(
      () => Bank.fromPeft(model.shape, [{ name: 'a', dir: join(fixtures, 'parity-mistral', 'adapter') }]),
      'BAD_SHAPE',
      /another base/,
    );
    const p = pack(randomGroups(1, 100), { policies: [frozen(0)], read: 'logps' });
    using mistral = await tinyModel('mistral');
    await refuses(() => model.score(p, randomBank(mistral, ['u']), 'logps'), 'BAD_SHAPE', /another base/);
    const deeper = Bank.create({ ...model.shape, layers: 3 }, randomBank(model, ['u']).adapters[0].config!, ['u'], {
      seed: 0,
    });
    await refuses(() => model.score(p, deeper, 'logps'), 'BAD_SHAPE', /layer 2 of a model with 2/);
    await refuses(() => model.generate([Int32Array.of(1)], deeper), 'BAD_SHAPE');
    const wide = Bank.create(
      { ...model.shape, hiddenSize: 48 },
      { ...randomBank(model, ['u']).adapters[0].config!, targets: ['k_proj'] },
      ['u'],
      { seed: 0, rewardHead: true },
    );
    await refuses(() => model.score(p, wide, 'logps'), 'BAD_SHAPE', /48 -> 16/);
  });

  it('whose layout does not fit itself', async () => {
    const good = (): NativeBankLayout => ({
      factors: Int32Array.of(0, 2, 32, 64, 64, 2, 192, 2, 2),
      adapters: [[{ layer: 0, target: 0, a: 0, b: 1, core: 2, scale: 1, dropout: 0 }]],
      rewardHeads: Int32Array.of(-1),
      weights: {},
    });
    const create = (layout: unknown, size = 196, gradients = size) =>
      addon().createBank(layout as NativeBankLayout, new Float32Array(size), new Float32Array(gradients));
    expect(create(good()).kind).toBe('bank');
    const module = (change: object) => ({ ...good(), adapters: [[{ ...good().adapters[0][0], ...change }]] });
    const factors = (...values: number[]) => ({ ...good(), factors: Int32Array.of(...values) });
    const cases: [unknown, string][] = [
      [factors(0, 2, 32, 64, 64, 2, 193, 2, 2), 'BAD_SHAPE'],
      [factors(-1, 2, 32, 64, 64, 2, 192, 2, 2), 'BAD_SHAPE'],
      [factors(0, 0, 32, 64, 64, 2, 192, 2, 2), 'BAD_SHAPE'],
      [factors(0, 2 ** 30, 2 ** 30, 64, 64, 2, 192, 2, 2), 'BAD_SHAPE'],
      [factors(0, 4, 16, 64, 64, 2, 192, 2, 2), 'BAD_SHAPE'],
      [factors(0, 2, 32, 64, 64, 2, 192, 4, 1), 'BAD_SHAPE'],
      [factors(0, 2, 32, 64), 'BAD_ARGUMENT'],
      [module({ a: 3 }), 'BAD_ARGUMENT'],
      [module({ a: -1 }), 'BAD_ARGUMENT'],
      [module({ b: 2 ** 32 }), 'BAD_ARGUMENT'],
      [module({ core: -2 }), 'BAD_ARGUMENT'],
      [module({ target: 7 }), 'BAD_ARGUMENT'],
      [module({ layer: -1 }), 'BAD_ARGUMENT'],
      [module({ layer: 2 ** 62 }), 'BAD_ARGUMENT'],
      [module({ dropout: 1 }), 'BAD_ARGUMENT'],
      [module({ dropout: Number.NaN }), 'BAD_ARGUMENT'],
      [module({ scale: '2' }), 'BAD_ARGUMENT'],
      [{ ...good(), rewardHeads: Int32Array.of() }, 'BAD_ARGUMENT'],
      [{ ...good(), rewardHeads: Int32Array.of(9) }, 'BAD_ARGUMENT'],
      [{ ...good(), rewardHeads: [-1] }, 'BAD_ARGUMENT'],
      [{ ...good(), weights: { 'model.norm.weight': 9 } }, 'BAD_ARGUMENT'],
      [{ ...good(), weights: null }, 'BAD_ARGUMENT'],
      [{ ...good(), adapters: {} }, 'BAD_ARGUMENT'],
      [{ ...good(), adapters: [{}] }, 'BAD_ARGUMENT'],
      [{ ...good(), adapters: [[null]] }, 'BAD_ARGUMENT'],
      [undefined, 'BAD_ARGUMENT'],
    ];
    for (const [layout, code] of cases) await refuses(() => create(layout), code);
    await refuses(() => create(good(), 195), 'BAD_SHAPE', /does not fit a buffer of 195/);
    await refuses(() => create(good(), 196, 195), 'BAD_ARGUMENT', /one length/);
    await refuses(
      () => addon().createBank(good(), new Float64Array(196) as never, new Float32Array(196)),
      'BAD_ARGUMENT',
    );
  });

  it('that are no bank, or whose buffers are gone', async () => {
    const p = pack(randomGroups(1, 100), { policies: [frozen(-1)], read: 'logps' });
    const bank = randomBank(model, ['u']);
    const out = new Float32Array(p.native.rows.length);
    const options = { read: 'logps', keep: false, checkpoint: false, dropoutSeed: 0 } as const;
    for (const bad of [{}, model.native, Object.create(bank.native()), bank, 3, new Float32Array(2)])
      await refuses(() => model.native.score(p.native, bad as NativeBank, options, out), 'BAD_ARGUMENT', /bank/);
    await model.score(p, bank, 'logps');
    structuredClone(bank.gradients.buffer, { transfer: [bank.gradients.buffer as ArrayBuffer] });
    await refuses(() => model.score(p, bank, 'logps'), 'BAD_ARGUMENT', /transferred/);
  });

  it('that train weights of other shapes, or not all that an empty model needs', async () => {
    const p = pack(randomGroups(1, 100), { policies: [frozen(-1)], read: 'logps' });
    const shapes = model.weightShapes();
    const bad = Bank.full(
      shapes.map((s) => (s.name === 'model.norm.weight' ? { ...s, cols: 31 } : s)),
      (name) => (name === 'model.norm.weight' ? new Float32Array(31) : model.weight(name)),
    );
    await refuses(
      () => model.score(p, bad, 'logps'),
      'BAD_SHAPE',
      /model\.norm\.weight: found 1 x 31, expected 1 x 32/,
    );
    using empty = Model.empty(model.config, model.tokenizer, { threads: 1 });
    await refuses(() => empty.score(p, null, 'logps'), 'NOT_FOUND', /no weight model\.embed_tokens\.weight/);
    const part = Bank.full(shapes.slice(1), (name) => model.weight(name));
    await refuses(() => empty.score(p, part, 'logps'), 'NOT_FOUND', new RegExp(shapes[0].name));
  });
});

describe('calls', () => {
  const p = pack(randomGroups(2, 200), { policies: [learning(0)], read: 'logps' });
  const n = p.native.rows.length;

  it('score with bad options or buffers', async () => {
    const bank = randomBank(model, ['u']).native();
    const good = { read: 'logps', keep: false, checkpoint: false, dropoutSeed: 0 };
    const score = (change: object, out: unknown = new Float32Array(n), squares?: unknown) =>
      model.native.score(p.native, bank, { ...good, ...change } as never, out as never, squares as never);
    await score({});
    await refuses(() => score({ read: 'values' }), 'BAD_ARGUMENT', /read/);
    for (const dropoutSeed of [-1, 0.5, 2 ** 32, Number.NaN, '1', undefined])
      await refuses(() => score({ dropoutSeed }), 'BAD_ARGUMENT', /dropoutSeed/);
    for (const abort of [1, {}, new Uint8Array(4), new Int32Array(0)])
      await refuses(() => score({ abort }), 'BAD_ARGUMENT', /abort/);
    for (const out of [null, [], new Float64Array(n), new Float32Array(n - 1), new Float32Array(n + 1)]) {
      await refuses(() => score({}, out), 'BAD_ARGUMENT', /out/);
      await refuses(() => score({}, new Float32Array(n), out), 'BAD_ARGUMENT', /squares/);
    }
    await refuses(() => (model.native.score as () => Promise<void>)(), 'BAD_ARGUMENT');
    const rows = new Float32Array(n * 32 - 1);
    await refuses(() => model.native.hidden(p.native, bank, rows), 'BAD_ARGUMENT', /readouts x hiddenSize/);
    await refuses(() => model.native.hidden(p.native, bank, new Float32Array(n * 32)), 'BAD_ARGUMENT', /needsGrad/);
  });

  it('rewards of an adapter that has no head', async () => {
    const rewards = pack(randomGroups(2, 200), { policies: [frozen(0)], read: 'reward' });
    await refuses(() => model.score(rewards, randomBank(model, ['u']), 'reward'), 'BAD_ARGUMENT', /no reward head/);
    await refuses(() => model.score(rewards, null, 'reward'), 'BAD_ARGUMENT', /no such adapter/);
  });

  it('backward without, or not fitting, the score before it', async () => {
    const bank = randomBank(model, ['u']);
    const ones = new Float32Array(n).fill(1);
    const keep = () => model.score(p, bank, 'logps', { keep: true });
    await model.score(p, bank, 'logps');
    await refuses(() => model.backward(p, bank, ones), 'BAD_ARGUMENT', /score with keep/);
    await keep();
    for (const length of [0, n - 1, n + 1])
      await refuses(() => model.backward(p, bank, new Float32Array(length)), 'BAD_ARGUMENT', /readouts/);
    await refuses(() => model.native.backward(bank.native(), new Float64Array(n) as never), 'BAD_ARGUMENT', /gradient/);
    await refuses(() => model.native.backward(null as never, ones), 'BAD_ARGUMENT', /bank/);
    // A bank with other ranks would be read past its end.
    for (const other of [randomBank(model, ['u'], { r: 8 }), randomBank(model, ['u'])])
      await refuses(() => model.backward(p, other, ones), 'BAD_ARGUMENT', /bank that score had/);
    expect(bank.gradients.every((g) => g === 0)).toBe(true);
    await model.backward(p, bank, ones);
    await refuses(() => model.backward(p, bank, ones), 'BAD_ARGUMENT', /score with keep/);
    await keep();
    await model.score(p, bank, 'logps');
    await refuses(() => model.backward(p, bank, ones), 'BAD_ARGUMENT', /score with keep/);
  });

  it('generate with what makes no sense', async () => {
    const bank = randomBank(model, ['u']);
    const one = [Int32Array.of(1, 2)];
    await refuses(() => model.generate(one, null, { maxNewTokens: 127 }), 'BAD_ARGUMENT', /128 positions/);
    await refuses(() => model.generate([new Int32Array(0)], null), 'BAD_ARGUMENT', /no token/);
    for (const id of [-1, 280, 2 ** 31 - 1])
      await refuses(() => model.generate([Int32Array.of(id)], null), 'BAD_ARGUMENT', /vocabulary/);
    for (const adapter of [1, -2, 0.5])
      await refuses(() => model.generate(one, bank, { adapter }), 'BAD_ARGUMENT', /adapter/);
    await refuses(() => model.generate(one, null, { adapter: 0 }), 'BAD_ARGUMENT', /no adapter 0/);
    for (const bad of [-1, 1.5, Number.NaN])
      await refuses(() => model.generate(one, null, { maxNewTokens: bad }), 'BAD_ARGUMENT', /maxNewTokens/);
    for (const bad of [-0.1, Number.NaN])
      await refuses(() => model.generate(one, null, { temperature: bad }), 'BAD_ARGUMENT', /temperature/);
    for (const bad of [0, 1.1, Number.NaN])
      await refuses(() => model.generate(one, null, { topP: bad }), 'BAD_ARGUMENT', /topP/);
    await refuses(() => model.generate(one, null, { topK: -1 }), 'BAD_ARGUMENT', /topK/);
    await refuses(() => model.generate([[1, 2]] as never, null), 'BAD_ARGUMENT', /prompt/);
    const options = { adapter: -1, maxNewTokens: 1, temperature: 0, topK: 0, topP: 1, stopTokens: new Int32Array(0) };
    const seeds = new Uint32Array(2);
    await refuses(() => model.native.generate(one, null, { ...options, seeds }), 'BAD_ARGUMENT', /as many seeds/);
    await refuses(() => model.native.generate({} as never, null, { ...options, seeds }), 'BAD_ARGUMENT', /prompts/);
    const huge = { ...options, seeds: new Uint32Array(1), maxNewTokens: 2 ** 31 - 1 };
    await refuses(() => model.native.generate(one, null, huge), 'OUT_OF_MEMORY');
  });

  it('an optimizer step or norms over spans that are not there', async () => {
    const values = new Float32Array(8);
    for (const spans of [Int32Array.of(0, 9), Int32Array.of(-1, 2), Int32Array.of(3, 2), Int32Array.of(0)]) {
      await refuses(() => addon().norms(values, spans), 'BAD_ARGUMENT', /span/);
      const one = { learningRate: 1, beta1: 0.9, beta2: 0.9, eps: 1, weightDecay: 0, gradScale: 1 };
      const step = { ...one, spans, steps: Int32Array.of(1), decay: Uint8Array.of(0) };
      await refuses(() => addon().adamw(values, values, values, values, step), 'BAD_ARGUMENT', /span/);
      const good = { ...step, spans: Int32Array.of(0, 8) };
      await refuses(() => addon().adamw(values, values, values, new Float32Array(7), good), 'BAD_ARGUMENT', /length/);
      await refuses(
        () => addon().adamw(values, values, values, values, { ...good, steps: Int32Array.of(1, 1) }),
        'BAD_ARGUMENT',
        /steps and decay/,
      );
    }
  });
});
