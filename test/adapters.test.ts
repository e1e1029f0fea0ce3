import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { type AdapterConfig, adapterConfig, targetsOf } from '../lib/adapters/config.js';
import { parsePeftConfig } from '../lib/adapters/peft-config.js';
import type { NativeModelConfig } from '../lib/native/addon.js';
import { errorOf, fill, tinyModel } from './adapters-model.js';

const model = tinyModel();

function create(
  share: AdapterConfig['share'],
  names: string[],
  options: Partial<Parameters<typeof Bank.create>[3]> = {},
) {
  return Bank.create(model, adapterConfig({ r: 3, alpha: 6, share }), names, { seed: 5, ...options });
}

describe('targets', () => {
  const llama: NativeModelConfig = { ...tinyModel(), hiddenSize: 16, intermediateSize: 24, layers: 12 };
  const cases = JSON.parse(readFileSync(new URL('fixtures/peft-matching.json', import.meta.url), 'utf8')) as {
    config: object;
    matched: Record<string, string[]>;
  }[];

  test.each(cases)('are those of PEFT: $config', ({ config: given, matched }) => {
    const { config } = parsePeftConfig(JSON.stringify({ peft_type: 'LORA', ...given }), 'adapter_config.json');
    const found: Record<string, string[]> = {};
    for (const { r, scale, layer, target } of targetsOf(config, llama, { everyTarget: false })) {
      const key = `${r} ${scale}`;
      found[key] ??= [];
      const layers = found[key];
      if (!layers.at(-1)?.startsWith(`${layer}`)) layers.push(`${layer}`);
      layers[layers.length - 1] += 'qkvogud'[target];
    }
    const expected = Object.entries(matched).map(([key, layers]) => [key.replace(/\.0$/, ''), layers]);
    expect(found).toEqual(Object.fromEntries(expected));
  });

  test('have the shapes of the linear layers, grouped queries included', () => {
    const targets = targetsOf(adapterConfig({ r: 2, alpha: 3 }), model);
    expect(targets).toHaveLength(7 * model.layers);
    expect(targets.slice(0, 7).map((t) => [t.name.split('.').at(-1), t.in, t.out])).toEqual([
      ['q_proj', 8, 16],
      ['k_proj', 8, 8],
      ['v_proj', 8, 8],
      ['o_proj', 16, 8],
      ['gate_proj', 8, 12],
      ['up_proj', 8, 12],
      ['down_proj', 12, 8],
    ]);
    expect(targets[9]).toMatchObject({ layer: 1, target: 2, name: 'model.layers.1.self_attn.v_proj', scale: 1.5 });
  });

  test.each<[string, Partial<AdapterConfig>, string, RegExp]>([
    [
      'a list entry that matches nothing',
      { targets: ['q_proj', 'qproj'] },
      'BAD_CONFIG',
      /"qproj" matches no module.*q_proj, k_proj/,
    ],
    ['a pattern that matches nothing', { targets: '.*query' }, 'BAD_CONFIG', /matches no module.*down_proj/],
    ['a name that is no list', { targets: 'q_proj' }, 'BAD_CONFIG', /a regular expression for whole names/],
    [
      'a rank of nothing',
      { rankPattern: { qproj: 4 } },
      'BAD_CONFIG',
      /rankPattern: "qproj" matches no module.*q_proj/,
    ],
    [
      'layers that are not there',
      { layersToTransform: 9 },
      'BAD_CONFIG',
      /matches no module of this model \(2 layers\)/,
    ],
    ['the head', { targets: ['lm_head'] }, 'UNSUPPORTED', /lm_head cannot have an adapter/],
    ['everything', { targets: '.*' }, 'UNSUPPORTED', /cannot have an adapter/],
    [
      'a pattern that is none',
      { targets: 'q_proj(' },
      'BAD_CONFIG',
      /targets: cannot read the regular expression "q_proj\("/,
    ],
    ['inline flags', { targets: '(?i).*Q_PROJ' }, 'BAD_CONFIG', /the group "\(\?i\)" is not supported/],
    ['a pattern without end', { targets: '(.*)*(.*)*(.*)*x' }, 'BAD_CONFIG', /takes over 1000 ms/],
    ['an absurd rank', { r: 1e9 }, 'BAD_CONFIG', /rank 1000000000 of model\.layers\.0\.self_attn\.q_proj is larger/],
    [
      'an absurd rank in a pattern',
      { rankPattern: { v_proj: 13 } },
      'BAD_CONFIG',
      /rank 13 of .*v_proj is larger than the model's width 12/,
    ],
  ])('refuse %s', (_, given, code, message) => {
    const error = errorOf(() => targetsOf(adapterConfig({ r: 3, ...given }), model));
    expect(error).toMatchObject({ code, message: expect.stringMatching(message) });
  });
});

test.each<[string, unknown, string, RegExp]>([
  ['r', 0, 'BAD_CONFIG', /adapter\.r: found 0, expected a positive whole number/],
  ['r', 2.5, 'BAD_CONFIG', /adapter\.r/],
  ['alpha', '8', 'BAD_CONFIG', /adapter\.alpha: found "8", expected a number/],
  ['dropout', 1, 'BAD_CONFIG', /\[0, 1\)/],
  ['targets', [], 'BAD_CONFIG', /all-linear/],
  ['share', 'all', 'BAD_CONFIG', /none, a, b, core, vector/],
  ['rankPattern', { q_proj: 0 }, 'BAD_CONFIG', /rankPattern\["q_proj"\]: found 0/],
  ['layersToTransform', [-1], 'BAD_CONFIG', /layersToTransform/],
  ['rank', 4, 'BAD_CONFIG', /adapter\.rank: .*no such field/],
  ['modulesToSave', ['embed_tokens'], 'UNSUPPORTED', /"embed_tokens"/],
])('a configuration with %s = %j is refused', (field, value, code, message) => {
  expect(errorOf(() => adapterConfig({ [field]: value }))).toMatchObject({
    code,
    message: expect.stringMatching(message),
  });
});

describe('a bank', () => {
  const offsets = (bank: Bank, part: 'a' | 'b' | 'core') =>
    bank.adapters.map((adapter) => adapter.modules.map((m) => (m[part] === -1 ? -1 : bank.factors[m[part]].offset)));

  test.each<[AdapterConfig['share'], boolean, boolean, [number, number] | null]>([
    ['none', false, false, null],
    ['a', true, false, null],
    ['b', false, true, null],
    ['core', true, true, [3, 3]],
    ['vector', true, true, [1, 3]],
  ])('with share %s shares what it says', (share, sharedA, sharedB, core) => {
    const bank = create(share, ['u', 'v', 'w']);
    const [a, b] = [offsets(bank, 'a'), offsets(bank, 'b')];
    expect(new Set(a.flat()).size).toBe(14 * (sharedA ? 1 : 3));
    expect(new Set(b.flat()).size).toBe(14 * (sharedB ? 1 : 3));
    if (sharedA) expect(a[1]).toEqual(a[0]);
    if (sharedB) expect(b[2]).toEqual(b[0]);
    const cores = bank.factors.filter((factor) => factor.role === 'core');
    expect(cores.map(({ rows, cols }) => [rows, cols])).toEqual(Array(core ? 42 : 0).fill(core));
    expect(new Set(offsets(bank, 'core').flat()).size).toBe(core ? 42 : 1);
    for (const factor of bank.factors) {
      const own = { A: !sharedA, B: !sharedB, core: true }[factor.role as 'A'];
      expect(factor.owner === -1).toBe(!own);
      expect(factor.name.endsWith(own ? `@${'uvw'[factor.owner]}` : factor.role)).toBe(true);
    }
    expect(() => bank.native()).not.toThrow();
  });

  test('lays factors out without gaps or overlaps, as the addon takes them', () => {
    const bank = create('b', ['u', 'v'], { rewardHead: true });
    const { factors, adapters, rewardHeads, weights } = bank.layout();
    let end = 0;
    for (let i = 0; i < factors.length; i += 3) {
      expect(factors[i]).toBe(end);
      end += factors[i + 1] * factors[i + 2];
    }
    expect(end).toBe(bank.parameters.length);
    expect(bank.gradients).toHaveLength(end);
    expect(adapters[1][13]).toEqual({
      layer: 1,
      target: 6,
      a: bank.factorIndex('model.layers.1.mlp.down_proj.lora_A@v'),
      b: bank.factorIndex('model.layers.1.mlp.down_proj.lora_B'),
      core: -1,
      scale: 2,
      dropout: 0,
    });
    expect([...rewardHeads]).toEqual(Array(2).fill(bank.factorIndex('score')));
    expect(weights).toEqual({});
  });

  test('without sharing gives each adapter a head of its own', () => {
    const bank = create('none', ['u', 'v'], { rewardHead: true });
    expect([...bank.layout().rewardHeads]).toEqual([bank.factorIndex('score@u'), bank.factorIndex('score@v')]);
    const head = bank.values(bank.factorIndex('score@u'));
    expect(head).toHaveLength(8);
    expect(Math.max(...head.map(Math.abs))).toBeLessThan(0.1);
    expect(head.every((x) => x !== 0)).toBe(true);
  });

  test.each(['none', 'a', 'b', 'core', 'vector'] as const)("starts with PEFT's bound on A under share %s", (share) => {
    const bank = Bank.create({ ...model, hiddenSize: 64 }, adapterConfig({ r: 12, share }), ['u'], { seed: 1 });
    for (const [i, factor] of bank.factors.entries()) {
      const values = bank.values(i);
      if (factor.role === 'B') expect(values.every((x) => x === 0)).toBe(true);
      if (factor.role === 'core' && factor.rows === 1) expect(values.every((x) => x === 1)).toBe(true);
      if (factor.role === 'core' && factor.rows > 1)
        expect(values.every((x, k) => x === (k % 13 === 0 ? 1 : 0))).toBe(true);
      if (factor.role !== 'A') continue;
      const bound = 1 / Math.sqrt(factor.cols);
      expect(Math.max(...values.map(Math.abs))).toBeLessThanOrEqual(bound);
      expect(Math.max(...values)).toBeGreaterThan(0.9 * bound);
      expect(Math.min(...values)).toBeLessThan(-0.9 * bound);
      const variance = values.reduce((sum, x) => sum + x * x, 0) / values.length;
      expect(variance / (bound ** 2 / 3)).toBeCloseTo(1, 0);
    }
  });

  test('starts each tensor from the seed and its name alone', () => {
    const [one, more, other] = [
      create('none', ['v']),
      create('none', ['u', 'v', 'w']),
      create('none', ['v'], { seed: 6 }),
    ];
    const name = 'model.layers.1.mlp.up_proj.lora_A@v';
    expect(more.values(more.factorIndex(name))).toEqual(one.values(one.factorIndex(name)));
    expect(other.values(other.factorIndex(name))).not.toEqual(one.values(one.factorIndex(name)));
    expect(more.values(more.factorIndex(name))).not.toEqual(more.values(more.factorIndex(name.replace('@v', '@u'))));
    expect(more.values(0)).not.toEqual(more.values(2));
    const same = create('none', ['u', 'v'], { sharedInit: true });
    expect(same.materialise('u')).toEqual(same.materialise('v'));
  });

  test('sets an adapter by name; others change only through what they share', () => {
    const bank = create('b', ['u', 'v']);
    const tensors = create('none', ['x'], { seed: 9 }).materialise('x');
    for (const { data } of tensors.values()) fill(data, (i) => data[i] + 0.25);
    const before = bank.materialise('v');
    bank.setAdapter('u', tensors);
    expect(bank.materialise('u')).toEqual(tensors);
    const after = bank.materialise('v');
    const q = 'model.layers.0.self_attn.q_proj';
    expect(after.get(`${q}.lora_A`)).toEqual(before.get(`${q}.lora_A`));
    expect(after.get(`${q}.lora_B`)).toEqual(tensors.get(`${q}.lora_B`));

    tensors.get(`${q}.lora_B`)!.shape = [3, 16];
    expect(errorOf(() => bank.setAdapter('v', tensors))).toMatchObject({
      code: 'BAD_SHAPE',
      message: expect.stringContaining(`${q}.lora_B`),
    });
    expect(bank.materialise('v')).toEqual(after);
    expect(errorOf(() => bank.setAdapter('z', tensors))).toMatchObject({
      code: 'NOT_FOUND',
      message: expect.stringContaining('u, v'),
    });
  });

  test.each(['core', 'vector'] as const)('multiplies a %s into B', (share) => {
    const bank = create(share, ['u', 'v']);
    fill(bank.parameters, Math.sin);
    const { modules, targets } = bank.adapters[1];
    const { data } = bank.materialise('v').get(`${targets[3].name}.lora_B`)!;
    const [b, core] = [bank.values(modules[3].b), bank.values(modules[3].core)];
    for (let o = 0; o < targets[3].out; o++) {
      for (let j = 0; j < 3; j++) {
        let expected = 0;
        if (share === 'vector') expected = b[o * 3 + j] * core[j];
        else for (let k = 0; k < 3; k++) expected += b[o * 3 + k] * core[k * 3 + j];
        expect(data[o * 3 + j]).toBeCloseTo(expected, 6);
      }
    }
    expect(bank.values(modules[3].b)[0]).toBe(b[0]);
  });

  test('of base weights maps names to factors and decays matrices alone', () => {
    const weights = [
      { name: 'model.embed_tokens.weight', rows: 5, cols: 4 },
      { name: 'model.norm.weight', rows: 1, cols: 4 },
      { name: 'model.layers.0.self_attn.q_proj.bias', rows: 1, cols: 4 },
    ];
    const load = (name: string) => new Float32Array(name === weights[0].name ? 20 : 4).fill(name.length);
    const bank = Bank.full(weights, load, { rewardHead: { hiddenSize: 4, seed: 1 } });
    expect(bank.layout().weights).toEqual({ [weights[0].name]: 0, [weights[1].name]: 1, [weights[2].name]: 2 });
    expect([...bank.layout().rewardHeads]).toEqual([3]);
    expect(bank.layout().adapters).toEqual([[]]);
    expect(bank.factors.map((factor) => factor.decay)).toEqual([true, false, false, true]);
    expect([...bank.values(1)]).toEqual(Array(4).fill('model.norm.weight'.length));
    expect(errorOf(() => Bank.full(weights, () => new Float32Array(3)))).toMatchObject({ code: 'BAD_SHAPE' });
  });

  test('refuses a name given twice and a bank too large to address', () => {
    expect(errorOf(() => create('none', ['u', 'u']))).toMatchObject({ code: 'BAD_ARGUMENT' });
    const wide = { ...model, hiddenSize: 65536, intermediateSize: 65536, layers: 80 };
    const huge = () => Bank.create(wide, adapterConfig({ r: 60000 }), ['u'], { seed: 0 });
    expect(errorOf(huge)).toMatchObject({ code: 'OUT_OF_MEMORY', message: expect.stringContaining('smaller rank') });
  });
});

describe('a step', () => {
  const options = { learningRate: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0.1, maxGradNorm: null };
  const factorsOf = (bank: Bank, owner: number) =>
    bank.factors.flatMap((factor, i) => (factor.owner === owner ? [i] : []));
  const fillGradients = (bank: Bank, shift: number) => fill(bank.gradients, (i) => Math.cos(i + shift));

  test('moves as AdamW does, each factor by its own count of steps', async () => {
    const bank = create('b', ['u', 'v']);
    const [m, v, expected] = [0, 1, 2].map(() => new Float64Array(bank.parameters.length));
    expected.set(bank.parameters);
    const counts = new Int32Array(bank.factors.length);
    for (const [n, active] of [[0], [1], [0, 1]].entries()) {
      fillGradients(bank, n);
      for (const [i, { offset, rows, cols, owner }] of bank.factors.entries()) {
        if (owner !== -1 && !active.includes(owner)) continue;
        const t = ++counts[i];
        for (let k = offset; k < offset + rows * cols; k++) {
          const g = bank.gradients[k];
          m[k] = 0.9 * m[k] + 0.1 * g;
          v[k] = 0.999 * v[k] + 0.001 * g * g;
          const step = m[k] / (1 - 0.9 ** t) / (Math.sqrt(v[k] / (1 - 0.999 ** t)) + 1e-8);
          expected[k] = expected[k] * (1 - 0.01 * 0.1) - 0.01 * step;
        }
      }
      await bank.step({ ...options, active });
    }
    expect([...bank.steps]).toEqual([...counts]);
    expect(new Set(factorsOf(bank, -1).map((i) => bank.steps[i]))).toEqual(new Set([3]));
    expect(new Set(factorsOf(bank, 0).map((i) => bank.steps[i]))).toEqual(new Set([2]));
    for (let k = 0; k < expected.length; k++) expect(Math.abs(bank.parameters[k] - expected[k])).toBeLessThan(1e-6);
  });

  test('leaves who was not in the batch, and what is frozen, to the bit', async () => {
    const bank = create('a', ['u', 'v']);
    bank.setTrainable((factor) => factor.role === 'B');
    fillGradients(bank, 0);
    const before = bank.parameters.slice();
    const norm = await bank.step({ ...options, active: [0] });
    const touched = factorsOf(bank, 0);
    bank.factors.forEach(({ offset, rows, cols }, i) => {
      const same = bank.values(i).every((x, k) => Object.is(x, before[offset + k]));
      expect(same).toBe(!touched.includes(i));
      expect(rows * cols).toBeGreaterThan(0);
      expect(bank.steps[i]).toBe(touched.includes(i) ? 1 : 0);
    });
    const squares = touched.flatMap((i) => [...bank.gradient(i)]).reduce((sum, g) => sum + g * g, 0);
    expect(norm).toBeCloseTo(Math.sqrt(squares), 6);
    expect(bank.gradNorm([0])).toBe(norm);
    const byTensor = bank.gradNormsByTensor();
    expect(byTensor.size).toBe(28);
    expect(byTensor.get('model.layers.0.self_attn.k_proj.lora_B@v')).toBeCloseTo(
      Math.hypot(...bank.gradient(bank.factorIndex('model.layers.0.self_attn.k_proj.lora_B@v'))),
      6,
    );
    bank.zeroGrad([0]);
    expect(bank.gradNorm([0])).toBe(0);
    expect(bank.gradNorm([1])).toBeGreaterThan(1);
    bank.zeroGrad();
    expect(bank.gradients.every((g) => g === 0)).toBe(true);
  });

  test('clips to the norm that it returns unclipped', async () => {
    const [clipped, scaled] = [create('none', ['u']), create('none', ['u'])];
    fillGradients(clipped, 0);
    const norm = await clipped.step({ ...options, maxGradNorm: 0.5, eps: 1 });
    expect(norm).toBeGreaterThan(1);
    fill(scaled.gradients, (i) => Math.cos(i) * (0.5 / (norm + 1e-6)));
    expect(await scaled.step({ ...options, eps: 1 })).toBeCloseTo(0.5, 5);
    const distances = clipped.parameters.map((x, i) => Math.abs(x - scaled.parameters[i]));
    expect(Math.max(...distances)).toBeLessThan(1e-7);
  });

  test('refuses a gradient that is not finite and changes nothing', async () => {
    const bank = create('none', ['u']);
    bank.gradients[bank.factors[3].offset + 1] = Number.NaN;
    const before = bank.parameters.slice();
    await expect(bank.step(options)).rejects.toMatchObject({
      code: 'NON_FINITE',
      message: expect.stringContaining(bank.factors[3].name),
    });
    expect(bank.parameters).toEqual(before);
    expect(bank.state().m).toBeNull();
    expect(bank.steps.every((count) => count === 0)).toBe(true);
  });

  test('goes on from a restored state to the bit', async () => {
    const [one, two] = [create('core', ['u', 'v']), create('core', ['u', 'v'], { seed: 77 })];
    fillGradients(one, 1);
    await one.step({ ...options, active: [1] });
    two.restore(structuredClone(one.state()));
    for (const bank of [one, two]) {
      fillGradients(bank, 2);
      await bank.step(options);
    }
    expect(two.state()).toEqual(one.state());
    const other = create('core', ['u', 'w']);
    expect(errorOf(() => other.restore(one.state()))).toMatchObject({
      code: 'BAD_SHAPE',
      message: expect.stringMatching(/lora_core@v \[3, 3\], expected .*lora_core@w/),
    });
  });

  test('after dispose is refused', async () => {
    const bank = create('none', ['u']);
    expect(bank.native()).toBe(bank.native());
    bank.dispose();
    await expect(bank.step(options)).rejects.toMatchObject({ code: 'DISPOSED' });
    expect(errorOf(() => bank.native())).toMatchObject({ code: 'DISPOSED' });
  });
});
