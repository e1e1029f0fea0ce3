// Weights by layer: every layer is mixed by its own, and what does not fit is refused.
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { mergeExperts } from '../lib/merge/index.js';
import { weightsByLayer } from '../lib/merge/layers.js';
import { mergeMethods } from '../lib/merge/methods.js';
import { readSafetensors } from '../lib/model/safetensors.js';
import { all, expert, merged, path, settings, updates, weights } from './support/merge-experts.js';
import { combination, distance, norm, reference } from './support/merge-reference.js';

describe('weights by layer', () => {
  // The second layer alone has weights of its own; the first has those of all.
  const own = { one: -0.4, two: 1.5, three: 0.1 };
  const weightsIn = (module: string) => (module.includes('layers.1.') ? own : weights);

  it.each([
    'cat',
    'svd',
    'linear',
    'task_arithmetic',
    'ties',
    'dare_linear',
    'della',
    'multi_slerp',
  ])('%s is its formula, layer by layer', async (method) => {
    const experts = await all;
    const { keep, combine, uses } = mergeMethods[method];
    const rank = keep !== 'all' || combine === 'elect' ? 20 : method === 'svd' ? 10 : undefined;
    const layerWeights = [{ layers: [1, 1], weights: own }] as const;
    const output = path(`layers-${method}`);
    const report = await merged(experts, method, { weights, layerWeights, rank, output });
    expect(report).toMatchObject({ weights, layerWeights });
    const taus = await Promise.all(experts.map(({ dir }) => updates(dir)));
    const lambda = uses.includes('lambda') ? settings.lambda : 1;
    for (const [module, got] of await updates(output)) {
      const expected = reference(
        method,
        taus.map((t) => t.get(module)!),
        Object.values(weightsIn(module)),
        { ...settings, lambda },
        module,
      );
      expect(distance(got, expected), module).toBeLessThan(1e-6);
    }
  });

  it('factor_average takes the average of each layer, and says what that misses', async () => {
    const pair = [await expert('left', { r: 2, alpha: 4 }), await expert('right', { r: 2, alpha: 4 }, { seed: 9 })];
    const layerWeights = [{ layers: [0, 0], weights: { left: 3, right: 1 } }] as const;
    const output = path('layers-factors');
    const report = await merged(pair, 'factor_average', { weights: { left: 1, right: 1 }, layerWeights, output });
    const taus = await Promise.all(pair.map(({ dir }) => updates(dir)));
    const got = await updates(output);
    for (const { name, norm: size, error } of report.tensors) {
      const w = name.includes('layers.0.') ? [0.75, 0.25] : [0.5, 0.5];
      const truth = combination(
        taus.map((t) => t.get(name)!),
        w,
      );
      expect(size / norm(truth)).toBeCloseTo(1, 5);
      expect(error / size).toBeCloseTo(distance(got.get(name)!, truth), 5);
      const factor = (dir: string, f: string) =>
        readSafetensors(join(dir, 'adapter_model.safetensors')).tensors.get(
          `base_model.model.${name}.lora_${f}.weight`,
        )!.data;
      for (const f of ['A', 'B']) {
        const [a, b] = pair.map(({ dir }) => factor(dir, f));
        factor(output, f).forEach((value, i) => {
          expect(value).toBeCloseTo(w[0] * a[i] + w[1] * b[i], 6);
        });
      }
    }
  });

  it('of zero leave a layer as it is in the base', async () => {
    const none = { one: 0, two: 0, three: 0 };
    const output = path('layers-zero');
    await merged(await all, 'cat', { weights, layerWeights: [{ layers: [0, 0], weights: none }], output });
    for (const [module, tau] of await updates(output)) expect(norm(tau) === 0).toBe(module.includes('layers.0.'));
  });

  it('are refused where they do not fit, naming the layers', async () => {
    const experts = await all;
    const bad = async (layers: [number, number], w: Record<string, unknown>, text: RegExp, method = 'cat') =>
      await expect(
        mergeExperts({
          experts,
          method,
          weights,
          layerWeights: [{ layers, weights: w as Record<string, number> }],
          output: path('refused'),
        }),
      ).rejects.toMatchObject({ code: 'BAD_ARGUMENT', message: expect.stringMatching(text) });
    await bad([1, 2], own, /--layer-weights 1-2: no expert adapts layer 2; the last one is 1/);
    await bad([1, 0], own, /--layer-weights 1-0: expected the first and the last/);
    await bad([0, 2], own, /no expert adapts layer 2/);
    await bad([-1, 0], own, /expected the first and the last/);
    await bad([0, 0.5], own, /expected the first and the last/);
    await bad([1, 1], { one: 1, two: 1 }, /--layer-weights 1: 'three' has none/);
    await bad([1, 1], { ...own, four: 1 }, /--layer-weights 1: there is no expert 'four'/);
    await bad([1, 1], { ...own, two: Number.NaN }, /--layer-weights 1: the weight of 'two' is null|'two' is NaN/);
    await bad([1, 1], { one: 0, two: 0, three: 0 }, /--layer-weights 1: all are zero/, 'linear');
    await bad([1, 1], own, /model_stock counts all experts alike/, 'model_stock');
    const twice = [
      { layers: [0, 1], weights: own },
      { layers: [1, 1], weights: own },
    ] as const;
    await expect(
      mergeExperts({ experts, method: 'cat', layerWeights: twice, output: path('refused') }),
    ).rejects.toThrow(/--layer-weights 1: layer 1 has weights already/);
  });

  it('may span layers that nothing adapts, between two that something does', () => {
    const tensors = [0, 2, 5].map((layer) => `model.layers.${layer}.mlp.up_proj`);
    const of = (...layers: [number, number][]) =>
      weightsByLayer(
        ['x'],
        [1],
        layers.map((run, i) => ({ layers: run, weights: { x: 2 + i } })),
        tensors,
        null,
      );
    expect(tensors.map(of([0, 2], [5, 5]))).toEqual([[2], [2], [3]]);
    expect(() => of([0, 1])).toThrow(/no expert adapts layer 1; the last one is 5/);
    expect(() => of([1, 2])).toThrow(/no expert adapts layer 1/);
  });
});
