// Merging on a base: whole models by task vectors, adapters into a whole model, scores before and after, the command line.
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { savePeft } from '../lib/adapters/peft.js';
import { Random } from '../lib/base/random.js';
import { pack } from '../lib/data/pack.js';
import { TensorFiles } from '../lib/merge/expert.js';
import { mergeExperts } from '../lib/merge/index.js';
import { weightFiles } from '../lib/model/folder.js';
import { Model } from '../lib/model/model.js';
import { writeSafetensors } from '../lib/model/safetensors.js';
import { fixtures, frozen, randomBank, randomGroups, tinyModel } from './support/engine.js';
import { combination, type Dense, distance, norm, reference } from './support/merge-reference.js';
import { fixture, goldenConfig, program, scratch, trained } from './support/runs.js';

const { path } = scratch();
const baseDir = (name: string) => join(fixtures, `parity-${name}`, 'model');

/** A copy of a model folder with every weight moved at random. */
async function moved(
  name: string,
  source: string,
  seed: number,
  dtype: 'F32' | 'BF16' = 'F32',
): Promise<{ name: string; dir: string }> {
  const dir = path(name);
  cpSync(source, dir, { recursive: true });
  const files = new TensorFiles(weightFiles(source));
  for (const file of ['model.safetensors.index.json', ...weightFiles(source).map((f) => f.split('/').at(-1)!)])
    rmSync(join(dir, file), { force: true });
  const random = new Random(seed);
  const tensors = [...files.shapes].map(([tensor, shape]) => ({
    name: tensor,
    shape,
    dtype,
    data: files.read(tensor).map((x) => x + 0.05 * random.normal()),
  }));
  await writeSafetensors(join(dir, 'model.safetensors'), tensors, { format: 'pt' });
  return { name, dir };
}

function dense(files: TensorFiles, tensor: string, base?: TensorFiles): Dense {
  const shape = files.shapes.get(tensor)!;
  const from = base?.read(tensor);
  const x = Float64Array.from(files.read(tensor), (value, i) => value - (from ? from[i] : 0));
  return { rows: x.length / shape.at(-1)!, cols: shape.at(-1)!, x };
}

const weights = { a: 0.7, b: 0.4 };
const settings = { density: 0.5, epsilon: 0.2, gamma: 0.01, lambda: 1, seed: 0 };

describe('whole models', () => {
  it.each([
    'linear',
    'ties',
    'dare_ties',
    'della',
    'breadcrumbs',
    'slerp',
    'nuslerp',
    'multi_slerp',
    'model_stock',
  ])('%s of task vectors is its formula', async (method) => {
    // A base in shards; experts in one file each.
    const base = baseDir('llama3-rope');
    const experts = [await moved('a', base, 1), await moved('b', base, 2)];
    const given = method === 'model_stock' ? undefined : weights;
    const output = path(`whole-${method}`);
    const report = await mergeExperts({ model: base, experts, weights: given, method, output, shardSize: 40_000 });
    const [origin, result] = [base, output].map((dir) => new TensorFiles(weightFiles(dir)));
    const sources = experts.map(({ dir }) => new TensorFiles(weightFiles(dir)));
    expect([...result.shapes].sort()).toEqual([...origin.shapes].sort());
    for (const tensor of origin.shapes.keys()) {
      // The reference is slow on purpose; layers beyond the first say nothing new.
      if (/layers\.[1-9]/.test(tensor)) continue;
      const taus = sources.map((files) => dense(files, tensor, origin));
      const expected = reference(method, taus, Object.values(given ?? { a: 1, b: 1 }), settings, tensor);
      // The file's float32 rounds base + update: the update itself is as exact as that.
      const whole = combination([dense(origin, tensor), expected], [1, 1]);
      expect(distance(dense(result, tensor), whole), tensor).toBeLessThan(1e-6);
      const { norm: size, error } = report.tensors.find((t) => t.name === tensor)!;
      expect(size / norm(expected)).toBeCloseTo(1, 6);
      expect(error).toBeLessThan(1e-6 * norm(whole));
    }
    expect(report.kind).toBe('model');
    const index = JSON.parse(readFileSync(join(output, 'model.safetensors.index.json'), 'utf8'));
    expect(Object.keys(index.weight_map)).toHaveLength(origin.shapes.size);
    expect(weightFiles(output).length).toBeGreaterThan(2);
    (await Model.load(output)).dispose();
  });

  it('take weights by layer; what lies in no layer has those of all', async () => {
    const base = baseDir('llama3-rope');
    const experts = [await moved('a', base, 1), await moved('b', base, 2)];
    const output = path('whole-layers');
    const layerWeights = [{ layers: [0, 0], weights: { a: 1.5, b: -0.5 } }] as const;
    await mergeExperts({ model: base, experts, weights, layerWeights, method: 'cat', as: 'model', output });
    const [origin, result] = [base, output].map((dir) => new TensorFiles(weightFiles(dir)));
    const sources = experts.map(({ dir }) => new TensorFiles(weightFiles(dir)));
    for (const tensor of origin.shapes.keys()) {
      const taus = sources.map((files) => dense(files, tensor, origin));
      const w = tensor.includes('layers.0.') ? [1.5, -0.5] : Object.values(weights);
      const whole = combination([dense(origin, tensor), ...taus], [1, ...w]);
      expect(distance(dense(result, tensor), whole), tensor).toBeLessThan(1e-6);
    }
  });

  it('have no rank to be approximated at: svd is their sum, others are refused', async () => {
    const base = baseDir('llama3-rope');
    const experts = [await moved('a', base, 1), await moved('b', base, 2)];
    const merge = (method: string) =>
      mergeExperts({ model: base, experts, weights, method, output: path(`r-${method}`) });
    expect((await merge('svd')).norm).toBe((await merge('cat')).norm);
    for (const method of ['ties_svd', 'dare_linear_svd', 'dare_ties_svd', 'magnitude_prune_svd']) {
      const message = new RegExp(`^${method} is .* give --method ${method.replace('_svd', '')}$`);
      await expect(merge(method)).rejects.toMatchObject({
        code: 'BAD_ARGUMENT',
        message: expect.stringMatching(message),
      });
      expect(existsSync(path(`r-${method}`))).toBe(false);
    }
  });

  it('in bfloat16 are rounded once and say what that lost', async () => {
    const source = await moved('bf-base', baseDir('llama-old'), 3, 'BF16');
    const experts = [await moved('bf-a', source.dir, 4, 'BF16'), await moved('bf-b', source.dir, 5, 'BF16')];
    const report = await mergeExperts({ model: source.dir, experts, method: 'linear', output: path('bf-out') });
    const result = new TensorFiles(weightFiles(path('bf-out')));
    expect([...result.dtypes.values()].every((dtype) => dtype === 'BF16')).toBe(true);
    const files = [source, ...experts].map(({ dir }) => new TensorFiles(weightFiles(dir)));
    for (const { name, error } of report.tensors) {
      const truth = combination(
        files.map((f) => dense(f, name)),
        [0, 0.5, 0.5],
      );
      const off = combination([dense(result, name), truth], [1, -1]);
      expect(error).toBeGreaterThan(0);
      expect(norm(off) / error).toBeCloseTo(1, 5);
    }
  });

  it('that are no experts on the base, or too large for the budget, are refused', async () => {
    const base = baseDir('llama-old');
    const other = await moved('other', baseDir('qwen3'), 6);
    const fits = await moved('fits', base, 7);
    const merge = (experts: { name: string; dir: string }[], options = {}) =>
      mergeExperts({ model: base, experts, method: 'linear', output: path('refused'), ...options });
    await expect(merge([fits, other])).rejects.toMatchObject({
      code: 'BAD_SHAPE',
      message: expect.stringMatching(/'other' \(.*\) is no expert on/),
    });
    await expect(merge([fits], { memory: 1000 })).rejects.toMatchObject({
      code: 'OUT_OF_MEMORY',
      message: expect.stringMatching(/merging \S+ \[.*\] of 1 experts takes .* MB, allowed are 0.0 MB/),
    });
    await expect(merge([fits], { model: undefined })).rejects.toThrow(/needs its base/);
    await expect(merge([fits], { rank: 2 })).rejects.toThrow(/--rank is the rank of an adapter/);
    await merge([fits]);
    await expect(merge([fits])).rejects.toThrow(/holds model.safetensors already/);
  });
});

/** Log-probabilities of random completions under one adapter (or the base). */
async function scores(model: Model, bank: Bank | null, adapter: number): Promise<Float32Array> {
  const groups = randomGroups(6, model.config.vocabSize, 9);
  return (await model.score(pack(groups, { policies: [frozen(adapter)], read: 'logps' }), bank, 'logps')).values;
}

describe('adapters on a base', () => {
  it('score alike as a concatenation, within a whole model, and as their true average', async () => {
    using model = await tinyModel('llama-old');
    const bank = randomBank(model, ['x']);
    const wide = randomBank(model, ['y'], { r: 5, alpha: 3, rslora: true });
    await savePeft(bank, 'x', path('x'));
    await savePeft(wide, 'y', path('y'));
    const experts = ['x', 'y'].map((name) => ({ name, dir: path(name) }));
    const common = { model: baseDir('llama-old'), experts, weights: { x: 0.3, y: 0.7 } };
    const cat = await mergeExperts({ ...common, method: 'cat', output: path('cat') });
    const whole = await mergeExperts({ ...common, method: 'cat', as: 'model', output: path('whole') });
    expect([cat.kind, whole.kind]).toEqual(['adapter', 'model']);
    expect(cat.norm / whole.norm).toBeCloseTo(1, 6);
    // A sum of rank 3 or 5 would not be what svd says, nor what is written.
    for (const [method, instead] of [
      ['svd', 'cat'],
      ['ties_svd', 'ties'],
    ])
      await expect(mergeExperts({ ...common, method, as: 'model', output: path('no') })).rejects.toMatchObject({
        code: 'BAD_ARGUMENT',
        message: expect.stringContaining(`give --method ${instead}, or leave it an adapter`),
      });
    const loaded = await Bank.fromPeft(model.shape, [{ name: 'cat', dir: path('cat') }]);
    const unmerged = await scores(model, loaded, 0);
    using folded = await Model.load(path('whole'), { dtype: 'float32' });
    const merged = await scores(folded, null, -1);
    const base = await scores(model, null, -1);
    const apart = Math.max(...unmerged.map((v, i) => Math.abs(v - base[i])));
    expect(apart).toBeGreaterThan(0.01);
    expect(Math.max(...unmerged.map((v, i) => Math.abs(v - merged[i])))).toBeLessThan(1e-4);
    // Tensors that no adapter touches are copied.
    const files = [baseDir('llama-old'), path('whole')].map((dir) => new TensorFiles(weightFiles(dir)));
    const [before, after] = files.map((f) => f.read('lm_head.weight'));
    expect(after).toEqual(before);
  });

  it('become a whole model where the result is not of low rank', async () => {
    using model = await tinyModel('qwen2');
    const bank = randomBank(model, ['x', 'y']);
    for (const name of ['x', 'y']) await savePeft(bank, name, path(`q-${name}`));
    const experts = ['x', 'y'].map((name) => ({ name, dir: path(`q-${name}`) }));
    const report = await mergeExperts({ model: baseDir('qwen2'), experts, method: 'ties', output: path('ties') });
    expect(report.kind).toBe('model');
    using merged = await Model.load(path('ties'), { dtype: 'float32' });
    expect((await scores(merged, null, -1)).every(Number.isFinite)).toBe(true);
    const low = await mergeExperts({ model: baseDir('qwen2'), experts, method: 'ties', rank: 4, output: path('low') });
    expect([low.kind, low.tensors[0].rank]).toEqual(['adapter', 4]);
    await expect(
      mergeExperts({ model: baseDir('llama-old'), experts, method: 'ties', output: path('no') }),
    ).rejects.toThrow(/'x' \(.*\) is no expert on/);
  });

  it('with reward heads are averaged with them, by weighted sums alone', async () => {
    using model = await tinyModel('llama-old');
    const bank = randomBank(model, ['r', 's'], { modulesToSave: ['score'] });
    // One head for both would be shared; these are each its own.
    const head = (name: string) => bank.materialise(name).get('score')!.data;
    for (const name of ['r', 's']) await savePeft(bank, name, path(`reward-${name}`));
    const experts = ['r', 's'].map((name) => ({ name, dir: path(`reward-${name}`) }));
    await mergeExperts({ experts, weights: { r: 0.25, s: 0.75 }, method: 'cat', output: path('rewards') });
    const merged = await Bank.fromPeft(model.shape, [{ name: 'm', dir: path('rewards') }]);
    const got = merged.materialise('m').get('score')!.data;
    const [r, s] = [head('r'), head('s')];
    for (let i = 0; i < got.length; i++) expect(got[i]).toBeCloseTo(0.25 * r[i] + 0.75 * s[i], 6);
    await expect(mergeExperts({ experts, method: 'slerp', output: path('no') })).rejects.toThrow(
      /no base to take an update from/,
    );
  });
});

describe('pluralign merge', () => {
  it('writes what it says, and refuses with status 2', async () => {
    using model = await tinyModel('llama-old');
    const bank = randomBank(model, ['calm', 'short']);
    for (const name of ['calm', 'short']) await savePeft(bank, name, path('cli', name));
    const adapters = ['--adapter', path('cli', 'calm'), '--adapter', `brief=${path('cli', 'short')}`];
    const output = path('cli', 'soup');
    const { status, stdout } = await program(
      'merge',
      ...adapters,
      '--weights',
      'calm=0.3,brief=0.7',
      '--method',
      'svd',
      '--rank',
      '2',
      '--output',
      output,
      '--json',
    );
    expect(status).toBe(0);
    const report = JSON.parse(stdout);
    expect(report).toMatchObject({ method: 'svd', kind: 'adapter', output, weights: { calm: 0.3, brief: 0.7 } });
    expect(report.tensors[0]).toMatchObject({ rank: 2, name: expect.any(String) });
    expect(report.error).toBeGreaterThan(0);
    expect(existsSync(join(output, 'adapter_config.json'))).toBe(true);
    const layers = await program(
      'merge',
      ...adapters,
      ...['--layer-weights', '0-0:calm=1,brief=0', '--layer-weights', '1:calm=0.25,brief=0.75'],
      ...['--output', path('cli', 'layers'), '--json'],
    );
    expect(JSON.parse(layers.stdout).layerWeights).toEqual([
      { layers: [0, 0], weights: { calm: 1, brief: 0 } },
      { layers: [1, 1], weights: { calm: 0.25, brief: 0.75 } },
    ]);
    const plain = await program(
      'merge',
      ...adapters,
      '--method',
      'svd',
      '--rank',
      '1',
      '--output',
      path('cli', 'plain'),
    );
    expect(plain.stdout).toMatch(/adapter by svd of calm 0.5, brief 0.5[\s\S]*lost .* %\)[\s\S]*largest losses/);
    for (const [argv, text] of [
      [['--weights', 'calm=x'], /finite weights/],
      [['--weights', 'calm=1,long=1'], /no expert 'long'/],
      [['--weights', 'calm=0,brief=0'], /all are zero/],
      [['--layer-weights', 'calm=1,brief=0'], /FIRST-LAST:NAME=w/],
      [['--layer-weights', '0-9:calm=1,brief=0'], /no expert adapts layer/],
      [['--method', 'tais'], /Allowed choices/],
      [['--method', 'ties'], /--rank R/],
    ] as const) {
      const refused = await program('merge', ...adapters, ...argv, '--output', path('cli', 'refused'));
      expect([refused.status, refused.stderr]).toEqual([2, expect.stringMatching(text)]);
      expect(existsSync(path('cli', 'refused'))).toBe(false);
    }
    mkdirSync(path('cli', 'bad'));
    writeFileSync(path('cli', 'bad', 'adapter_config.json'), '{');
    const bad = await program('merge', '--adapter', path('cli', 'bad'), '--output', path('cli', 'refused'));
    expect([bad.status, bad.stderr]).toEqual([2, expect.stringMatching(/not JSON/)]);
  });

  it('takes a run for its adapter and its base', async () => {
    const f = fixture('llama-old');
    const { output: run } = await trained(goldenConfig(f, path('run'), { train: { steps: 1 } }));
    using model = await tinyModel('llama-old');
    await savePeft(randomBank(model, ['other']), 'other', path('other-adapter'));
    const argv = ['--run', run, '--adapter', `other=${path('other-adapter')}`, '--weights', 'adapter=0.5,other=0.5'];
    const { status, stdout, stderr } = await program('merge', ...argv, '--output', path('run-soup'), '--json');
    expect([status, stderr]).toEqual([0, '']);
    expect(JSON.parse(stdout)).toMatchObject({ kind: 'adapter', weights: { adapter: 0.5, other: 0.5 } });
    const whole = await program('merge', ...argv, '--method', 'ties', '--output', path('run-whole'), '--json');
    expect(JSON.parse(whole.stdout).kind).toBe('model');
    const none = await program('merge', '--run', path('nowhere'), '--output', path('no'));
    expect(none.status).toBe(2);
  });
});
