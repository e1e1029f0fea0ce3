// What must hold of the engine whatever the model: gradients match finite differences, shared factors add up, packing and
// order do not matter.
import { describe, expect, it } from 'vitest';
import { Bank } from '../lib/adapters/bank.js';
import { mergeLimit, pack, packTrees, type Tree } from '../lib/data/pack.js';
import type { Group } from '../lib/data/types.js';
import { sumTokens } from '../lib/losses/index.js';
import type { Objective } from '../lib/methods/objective.js';
import { newConfig, parseModelConfig } from '../lib/model/config.js';
import { Model } from '../lib/model/model.js';
import { backwardGradient, PolicyReference, type Reference, type Scorer, scoreGroups } from '../lib/training/scorer.js';
import {
  directional,
  distance,
  dpo,
  dpoGradient,
  frozen,
  learning,
  norm,
  randomBank,
  randomGroups,
  shake,
  testDevice,
  tinyModel,
} from './support/engine.js';

function sizeOf(model: Model, name: string): number {
  const { rows, cols } = model.weightShapes().find((weight) => weight.name === name)!;
  return rows * cols;
}

async function expectFiniteDifferences(
  model: Model,
  bank: Bank,
  dropoutSeed = 0,
  checkpoint = false,
  groups = randomGroups(3, model.config.vocabSize, 2, 6),
) {
  const gradient = await dpoGradient(model, bank, groups, { dropoutSeed, checkpoint });
  const p = pack(groups, { policies: [frozen(0)], read: 'logps' });
  const loss = async () => dpo(p, (await model.score(p, bank, 'logps', { dropoutSeed })).values).loss;
  for (let i = 0; i < bank.factors.length; i++) {
    const { offset, rows, cols, name } = bank.factors[i];
    expect(norm(gradient.subarray(offset, offset + rows * cols)), name).toBeGreaterThan(1e-6);
    const { error, derivative } = await directional(bank, i, gradient, loss);
    expect(error, `${name}: derivative ${derivative}`).toBeLessThan(1e-2);
  }
}

describe('gradients match finite differences for every factor', () => {
  it.each([
    ['qwen3', 'none'],
    ['llama3-rope', 'core'],
    ['mistral', 'vector'],
  ] as const)('%s, share %s', async (name, share) => {
    using model = await tinyModel(name);
    const bank = randomBank(model, ['u'], { share });
    expect(bank.factors.length).toBe(model.config.layers * 7 * (share === 'none' ? 2 : 3));
    await expectFiniteDifferences(model, bank);
  });

  it.each([false, true])('under dropout with a fixed seed (checkpointing %s)', async (checkpoint) => {
    using model = await tinyModel('qwen2');
    const bank = randomBank(model, ['u'], { share: 'core', dropout: 0.3 });
    await expectFiniteDifferences(model, bank, 77, checkpoint);
  });

  it.each(['qwen2', 'qwen3', 'llama3-rope'])('%s, all weights trained', async (name) => {
    using model = await tinyModel(name);
    const bank = Bank.full(model.weightShapes(), (weight) => model.weight(weight));
    await expectFiniteDifferences(model, bank);
  });
});

describe('adapters that share factors', () => {
  it.each(['a', 'b', 'core', 'vector'] as const)('share %s: the gradient is the sum over adapters', async (share) => {
    using model = await tinyModel('qwen3');
    const names = ['u', 'v', 'w'];
    const bank = randomBank(model, names, { share });
    const groups = randomGroups(4, model.config.vocabSize);
    const gradientOf = async (of: Bank, adapters: number[], first: number) => {
      const p = pack(groups, { policies: adapters.map(learning), read: 'logps' });
      const { values } = await model.score(p, of, 'logps', { keep: true });
      of.zeroGrad();
      await model.backward(
        p,
        of,
        values.map((_, i) => Math.sin(first + i)),
      );
      return { gradients: of.gradients, values };
    };
    const together = await gradientOf(bank, [0, 1, 2], 0);

    // Each adapter alone, in a bank of its own with copies of its factors.
    const sum = new Float64Array(bank.parameters.length);
    for (const [i, name] of names.entries()) {
      const own = randomBank(model, [name], { share });
      own.factors.forEach((factor, f) => {
        own.values(f).set(bank.values(bank.factorIndex(factor.name)));
      });
      const share1 = together.values.length / names.length;
      const alone = await gradientOf(own, [0], i * share1);
      expect(alone.values).toEqual(together.values.slice(i * share1, (i + 1) * share1));
      own.factors.forEach((factor, f) => {
        const { offset } = bank.factors[bank.factorIndex(factor.name)];
        own.gradient(f).forEach((g, k) => {
          sum[offset + k] += g;
        });
      });
    }
    bank.factors.forEach((factor, i) => {
      const expected = sum.subarray(factor.offset, factor.offset + factor.rows * factor.cols);
      expect(norm(expected), factor.name).toBeGreaterThan(0);
      expect(distance(bank.gradient(i), expected), factor.name).toBeLessThan(1e-5);
    });
    expect(bank.factors.filter((f) => f.owner === -1).length).toBeGreaterThan(0);
  });

  it('a group under one adapter leaves the others no gradient', async () => {
    using model = await tinyModel('qwen3');
    const bank = randomBank(model, ['u', 'v']);
    await dpoGradient(model, bank, randomGroups(2, model.config.vocabSize), { adapter: 1 });
    bank.factors.forEach((factor, i) => {
      const size = norm(bank.gradient(i));
      if (factor.owner === 0) expect(size, factor.name).toBe(0);
      else expect(size, factor.name).toBeGreaterThan(0);
    });
  });
});

/**
 * Log-probabilities of trees in one pack, and gradients of a fixed pull on them. Each tree alone has the same
 * log-probabilities; the gradients of all of them alone are left in the bank.
 */
async function scoredTogether(model: Model, bank: Bank, trees: Tree[]) {
  const together = packTrees(trees, { read: 'logps' });
  const { values } = await model.score(together, bank, 'logps', { keep: true });
  const pull = values.map((_, i) => Math.cos(i));
  bank.zeroGrad();
  await model.backward(together, bank, pull);
  const gradients = bank.gradients.slice();
  bank.zeroGrad();
  for (const [i, one] of trees.entries()) {
    const [from, to] = [together.treeOffsets[i], together.treeOffsets[i + 1]].map((c) => together.offsets[c]);
    const alone = packTrees([one], { read: 'logps' });
    const own = await model.score(alone, bank, 'logps', { keep: one.grad });
    expect(own.values).toEqual(values.slice(from, to));
    if (one.grad) await model.backward(alone, bank, pull.subarray(from, to));
  }
  return { values, gradients };
}

describe('packs', () => {
  it.each(['none', 'core', 'vector'] as const)('a batch of 8 equals 4 + 4 accumulated (share %s)', async (share) => {
    using model = await tinyModel('mistral');
    const bank = randomBank(model, ['u'], { share });
    const groups = randomGroups(8, model.config.vocabSize);
    const whole = await dpoGradient(model, bank, groups);
    bank.zeroGrad();
    for (const half of [groups.slice(0, 4), groups.slice(4)]) {
      const p = pack(half, { policies: [learning(0)], read: 'logps' });
      const { values } = await model.score(p, bank, 'logps', { keep: true });
      // The loss divides by the batch's rows.
      const gradient = dpo(p, values).gradient.map((g) => g / 2);
      await model.backward(p, bank, gradient);
    }
    expect(distance(bank.gradients, whole)).toBeLessThan(1e-6);
  });

  it('of trees under policies of their own score and back-propagate as each tree alone', async () => {
    using model = await tinyModel('qwen3');
    const bank = randomBank(model, ['u', 'v']);
    const groups = randomGroups(4, model.config.vocabSize);
    const tree = (group: number, adapter: number, grad: boolean): Tree => ({ group: groups[group], adapter, grad });
    const trees = [
      tree(0, 1, true),
      tree(2, -1, false),
      tree(1, 0, true),
      tree(0, 0, false),
      tree(3, 1, true),
      tree(0, 0, true),
    ];
    const { gradients } = await scoredTogether(model, bank, trees);
    expect(distance(gradients, bank.gradients)).toBeLessThan(1e-6);
  });

  it.each([
    'float32',
    'bf16',
  ] as const)('of many trees come to the same bits on any number of threads (%s)', async (dtype) => {
    const runs: { values: Float32Array; gradients: Float32Array }[] = [];
    let apart = new Float32Array();
    for (const threads of [1, 2, 4]) {
      using model = await tinyModel('qwen3', threads, dtype);
      const bank = randomBank(model, ['u', 'v'], { share: 'core' });
      const groups = randomGroups(60, model.config.vocabSize, 6, 12);
      const trees = groups.flatMap((group, i): Tree[] => [
        { group, adapter: i % 2, grad: true },
        { group, adapter: i % 3 === 0 ? -1 : i % 2, grad: false },
      ]);
      runs.push(await scoredTogether(model, bank, trees));
      if (threads === 1) apart = bank.gradients.slice();
    }
    for (const { values, gradients } of runs.slice(1)) {
      expect(values).toEqual(runs[0].values);
      expect(gradients).toEqual(runs[0].gradients);
    }
    expect(distance(runs[0].gradients, apart)).toBeLessThan(dtype === 'bf16' ? 1e-2 : 1e-6);
  });

  it('of different sizes, one after another, do not disturb each other', async () => {
    using model = await tinyModel('llama-old');
    const bank = randomBank(model, ['u'], { dropout: 0.2 });
    const groups = randomGroups(30, model.config.vocabSize, 4, 12);
    const sizes = [1, 20, 2, 30, 1, 7];
    const run = async (at: number, checkpoint: boolean) => {
      const some = groups.slice(0, sizes[at]);
      const p = pack(some, { policies: [learning(0), frozen(-1)], read: 'logps' });
      const { values, squares } = await model.score(p, bank, 'logps', {
        keep: true,
        checkpoint,
        dropoutSeed: 3,
        squares: true,
      });
      // What stands between score and backward must leave what was kept alone.
      if (at % 2) {
        const other = pack(groups.slice(3, 9), { policies: [frozen(0)], read: 'logps' });
        const rows = new Float32Array(other.native.rows.length * model.config.hiddenSize);
        await model.native.hidden(other.native, bank.native(), rows);
        await model.score(other, randomBank(model, ['v'], { r: 9 }), 'logps');
        if (testDevice === 'cpu') await model.generate([groups[at].prompt], bank, { maxNewTokens: 3, adapter: 0 });
      }
      bank.zeroGrad();
      await model.backward(p, bank, dpo(p, values).gradient);
      return { values, squares, gradients: bank.gradients.slice() };
    };
    const fresh = [];
    for (const at of sizes.keys()) {
      using lone = await tinyModel('llama-old');
      const p = pack(groups.slice(0, sizes[at]), { policies: [learning(0), frozen(-1)], read: 'logps' });
      const { values } = await lone.score(p, bank, 'logps', { keep: true, dropoutSeed: 3 });
      bank.zeroGrad();
      await lone.backward(p, bank, dpo(p, values).gradient);
      fresh.push({ values, gradients: bank.gradients.slice() });
    }
    for (const checkpoint of [false, true, false])
      for (const at of sizes.keys()) {
        const { values, gradients } = await run(at, checkpoint);
        expect(values).toEqual(fresh[at].values);
        expect(gradients).toEqual(fresh[at].gradients);
      }
  });

  it('of more rows and a larger vocabulary than the head takes at a time', async () => {
    using tiny = await tinyModel('qwen2');
    const config = parseModelConfig(newConfig({ vocabSize: 1300, hiddenSize: 24, layers: 1, heads: 2 }), 'test');
    using model = Model.empty(config, tiny.tokenizer, { threads: 2, device: testDevice });
    const bank = shake(Bank.full(model.weightShapes(), (name) => new Float32Array(sizeOf(model, name)).fill(0.1)));
    const groups = randomGroups(120, 1300, 8, 14);
    for (const group of groups) for (const ids of [group.prompt, ...group.completions]) ids[0] = 1299 - (ids[0] % 800);
    const p = pack(groups, { policies: [frozen(0)], read: 'logps' });
    expect(p.readouts.length).toBeGreaterThan(1100);
    const { values, squares } = await model.score(p, bank, 'logps', { squares: true });
    for (const [i, group] of groups.entries()) {
      const alone = pack([group], { policies: [frozen(0)], read: 'logps' });
      const mine = await model.score(alone, bank, 'logps', { squares: true });
      expect(mine.values).toEqual(values.slice(p.offsets[2 * i], p.offsets[2 * i + 2]));
      expect(mine.squares).toEqual(squares!.slice(p.offsets[2 * i], p.offsets[2 * i + 2]));
    }
    await expectFiniteDifferences(model, bank, 0, false, groups.slice(0, 3));
    const whole = await dpoGradient(model, bank, groups);
    const sum = new Float64Array(whole.length);
    for (const group of groups)
      (await dpoGradient(model, bank, [group])).forEach((g, i) => {
        sum[i] += g / groups.length;
      });
    expect(distance(whole, sum)).toBeLessThan(1e-5);
  });

  it.skipIf(testDevice !== 'cpu')(
    'score the same bits before and after generation has packed the weights',
    async () => {
      using model = await tinyModel('qwen2');
      const p = pack(randomGroups(5, model.config.vocabSize), { policies: [frozen(-1)], read: 'logps' });
      const before = (await model.score(p, null, 'logps')).values;
      await model.generate([Int32Array.of(1, 2, 3)], null, { maxNewTokens: 2 });
      expect((await model.score(p, null, 'logps')).values).toEqual(before);
    },
  );
});

describe('dropout', () => {
  const score = async (model: Model, bank: Bank, groups: ReturnType<typeof randomGroups>, dropoutSeed: number) => {
    const p = pack(groups, { policies: [frozen(0)], read: 'logps' });
    return { p, values: (await model.score(p, bank, 'logps', { dropoutSeed })).values };
  };

  it('draws the same mask for a group in whatever pack it stands', async () => {
    using model = await tinyModel('qwen3');
    const bank = randomBank(model, ['u'], { dropout: 0.4 });
    const groups = randomGroups(6, model.config.vocabSize);
    const { p, values } = await score(model, bank, groups, 9);
    for (const [i, group] of groups.entries()) {
      const alone = await score(model, bank, [group], 9);
      expect(alone.values).toEqual(values.slice(p.offsets[2 * i], p.offsets[2 * i + 2]));
    }
    const apart = pack(groups, { policies: [frozen(0)], read: 'logps', sharePrompts: false });
    expect((await model.score(apart, bank, 'logps', { dropoutSeed: 9 })).values).toEqual(values);
    const reversed = await score(model, bank, [...groups].reverse(), 9);
    expect([...reversed.values].sort()).toEqual([...values].sort());
  });

  it('differs by seed and by group, and is off at seed 0', async () => {
    using model = await tinyModel('qwen3');
    const bank = randomBank(model, ['u'], { dropout: 0.4 });
    const plain = randomBank(model, ['u']);
    plain.parameters.set(bank.parameters);
    const [group] = randomGroups(1, model.config.vocabSize);
    const twins = [group, { ...group, index: 1 }];
    const { values } = await score(model, bank, twins, 1);
    expect(values.slice(0, values.length / 2)).not.toEqual(values.slice(values.length / 2));
    expect((await score(model, bank, twins, 2)).values).not.toEqual(values);
    expect((await score(model, bank, twins, 1)).values).toEqual(values);
    expect((await score(model, bank, twins, 0)).values).toEqual((await score(model, plain, twins, 0)).values);
    const text = { maxNewTokens: 12, adapter: 0 };
    if (testDevice !== 'cpu') return; // generation runs on the CPU alone
    expect(await model.generate([group.prompt], bank, text)).toEqual(await model.generate([group.prompt], plain, text));
  });

  it('drops the asked share of inputs and scales the rest up', async () => {
    using model = await tinyModel('llama-old');
    const rate = 0.3;
    // One adapted linear in the last layer, read at the last row alone: each column of A's gradient is one input.
    const config = { r: 1, targets: ['down_proj'], layersToTransform: model.config.layers - 1 };
    const bank = randomBank(model, ['u'], { ...config, dropout: rate });
    const plain = randomBank(model, ['u'], config);
    const b = bank.factorIndex('model.layers.1.mlp.down_proj.lora_B@u');
    // So small an update that the gradient at the linear's output does not depend on the mask.
    bank.values(b).forEach((x, i) => {
      bank.values(b)[i] = x * 1e-4;
    });
    plain.parameters.set(bank.parameters);
    const a = bank.factorIndex('model.layers.1.mlp.down_proj.lora_A@u');
    let inputs = 0;
    let dropped = 0;
    for (const group of randomGroups(60, model.config.vocabSize)) {
      const p = pack([group], { policies: [learning(0)], read: 'logps' });
      const gradient = new Float32Array(p.offsets[2]);
      gradient[p.offsets[1] - 1] = 1;
      const gradientOf = async (of: Bank) => {
        await model.score(p, of, 'logps', { keep: true, dropoutSeed: 5 });
        of.zeroGrad();
        await model.backward(p, of, gradient);
        return of.gradient(a);
      };
      const whole = await gradientOf(plain);
      (await gradientOf(bank)).forEach((g, i) => {
        inputs++;
        if (g === 0) dropped++;
        else expect(Math.abs((g / whole[i]) * (1 - rate) - 1)).toBeLessThan(0.01);
      });
    }
    expect(inputs).toBe(60 * model.config.intermediateSize);
    // Four standard deviations.
    expect(Math.abs(dropped / inputs - rate)).toBeLessThan(4 * Math.sqrt((rate * (1 - rate)) / inputs));
  });
});

describe('all weights trained', () => {
  it.each(['qwen2', 'qwen3', 'llama-old', 'mistral'])('%s: scores are the frozen model’s bit for bit', async (name) => {
    using model = await tinyModel(name);
    const bank = Bank.full(model.weightShapes(), (weight) => model.weight(weight));
    const p = pack(randomGroups(5, model.config.vocabSize), { policies: [frozen(-1)], read: 'logps' });
    const { values } = await model.score(p, null, 'logps');
    expect((await model.score(p, bank, 'logps')).values).toEqual(values);
    using empty = Model.empty(model.config, model.tokenizer, { threads: 2, device: testDevice });
    expect((await empty.score(p, bank, 'logps')).values).toEqual(values);
  });

  it('a tied matrix gets the gradient of both its uses', async () => {
    using model = await tinyModel('qwen3');
    expect(model.config.tied).toBe(true);
    using untied = Model.empty({ ...model.config, tied: false }, model.tokenizer, { threads: 2, device: testDevice });
    const weight = (name: string) =>
      model.weight(name === 'lm_head.weight' ? 'model.embed_tokens.weight' : name).slice();
    const tiedBank = Bank.full(model.weightShapes(), weight);
    const shapes = [
      ...model.weightShapes(),
      { name: 'lm_head.weight', rows: model.config.vocabSize, cols: model.config.hiddenSize },
    ];
    const untiedBank = Bank.full(shapes, weight);
    const groups = randomGroups(4, model.config.vocabSize);
    await dpoGradient(model, tiedBank, groups);
    await dpoGradient(untied, untiedBank, groups);
    const of = (bank: Bank, name: string) => bank.gradient(bank.factorIndex(name));
    const input = of(untiedBank, 'model.embed_tokens.weight');
    const output = of(untiedBank, 'lm_head.weight');
    expect(norm(input)).toBeGreaterThan(0);
    expect(norm(output)).toBeGreaterThan(0);
    const both = Float64Array.from(input, (x, i) => x + output[i]);
    expect(distance(of(tiedBank, 'model.embed_tokens.weight'), both)).toBeLessThan(1e-5);
  });
});

describe('readouts', () => {
  it('a reward is the head times the hidden row', async () => {
    using model = await tinyModel('reward');
    const bank = randomBank(model, ['u', 'v'], { modulesToSave: ['score'] });
    const p = pack(randomGroups(5, model.config.vocabSize), { policies: [frozen(0), frozen(1)], read: 'reward' });
    const { values } = await model.score(p, bank, 'reward');
    const d = model.config.hiddenSize;
    const rows = new Float32Array(values.length * d);
    await model.native.hidden(p.native, bank.native(), rows);
    values.forEach((value, i) => {
      const adapter = i < values.length / 2 ? 0 : 1;
      const head = bank.values(bank.adapters[adapter].head);
      const row = rows.subarray(p.readouts[i] * d, (p.readouts[i] + 1) * d);
      const expected = row.reduce((sum, x, k) => sum + x * head[k], 0);
      expect(Math.abs(value - expected)).toBeLessThan(1e-5 * Math.max(1, Math.abs(expected)));
    });
    expect(new Set(values).size).toBeGreaterThan(values.length / 2);
  });

  it('the reward head’s gradient, and every factor’s, matches finite differences', async () => {
    using model = await tinyModel('reward');
    const bank = randomBank(model, ['u'], { modulesToSave: ['score'] });
    const groups = randomGroups(3, model.config.vocabSize);
    const p = pack(groups, { policies: [learning(0)], read: 'reward' });
    const { values } = await model.score(p, bank, 'reward', { keep: true });
    const weights = Float32Array.from(values, (_, i) => Math.cos(i));
    bank.zeroGrad();
    await model.backward(p, bank, weights);
    const gradient = bank.gradients.slice();
    const loss = async () =>
      (await model.score(p, bank, 'reward')).values.reduce((sum, v, i) => sum + weights[i] * v, 0);
    for (let i = 0; i < bank.factors.length; i++) {
      const { error } = await directional(bank, i, gradient, loss);
      expect(error, bank.factors[i].name).toBeLessThan(1e-2);
    }
  });

  it('squares are Σ p² of the whole distribution', async () => {
    using model = await tinyModel('qwen2');
    const bank = randomBank(model, ['u']);
    for (const group of randomGroups(3, model.config.vocabSize)) {
      const every = Array.from({ length: model.config.vocabSize }, (_, id) => Int32Array.of(id));
      const p = pack([{ ...group, completions: every }], { policies: [frozen(0)], read: 'logps' });
      const { values, squares } = await model.score(p, bank, 'logps', { squares: true });
      const total = values.reduce((sum, lp) => sum + Math.exp(lp), 0);
      const expected = values.reduce((sum, lp) => sum + Math.exp(2 * lp), 0);
      expect(Math.abs(total - 1)).toBeLessThan(1e-5);
      for (const s of squares!) {
        expect(s).toBeGreaterThan(0);
        expect(s).toBeLessThanOrEqual(1);
        expect(Math.abs(s - expected) / expected).toBeLessThan(1e-5);
      }
    }
  });
});

describe('equal prompts and completions of different groups', () => {
  // Groups over few prompts and completions, one of them with a prompt of its own.
  const votes = (vocabulary: number) => {
    const made = randomGroups(24, vocabulary, 3, 30);
    const others = made.slice(0, 12).flatMap(({ completions }) => completions);
    return made.map((group, i) => {
      const own = i % 4 === 0 ? [group.completions[0]] : [];
      const completions = [others[(7 * i) % 11], others[(5 * i + 3) % 11], ...own];
      return { ...group, prompt: i === 5 ? group.prompt : made[i % 3].prompt, completions };
    });
  };

  it.each([
    ['logps', 'float32'],
    ['logps', 'bf16'],
    ['reward', 'float32'],
  ] as const)('stand once in a pack and score alike: %s in %s', async (read, dtype) => {
    using model = await tinyModel(read === 'reward' ? 'reward' : 'qwen3', 2, dtype);
    const bank = randomBank(model, ['u', 'v'], read === 'reward' ? { modulesToSave: ['score'] } : {});
    const groups = votes(model.config.vocabSize);
    const trees = groups.flatMap((group, i): Tree[] => [
      { group, adapter: i % 2, grad: true },
      { group, adapter: 0, grad: i % 3 === 0 },
      { group, adapter: 1, grad: false },
    ]);
    const of = async (merge: boolean) => {
      const p = packTrees(trees, { read, merge });
      const { values } = await model.score(p, bank, read, { keep: true });
      bank.zeroGrad();
      await model.backward(
        p,
        bank,
        Float32Array.from(values, (_, i) => Math.sin(i)),
      );
      return { p, values, gradients: bank.gradients.slice() };
    };
    const [apart, merged] = [await of(false), await of(true)];
    expect(merged.p.native.tokens.length).toBeLessThan(0.7 * apart.p.native.tokens.length);
    expect(merged.p.native.rows.length).toBeLessThan(apart.p.native.rows.length);
    expect(merged.p.offsets).toEqual(apart.p.offsets);
    expect(merged.values).toEqual(apart.values);
    expect(norm(apart.gradients)).toBeGreaterThan(1);
    expect(distance(merged.gradients, apart.gradients)).toBeLessThan(dtype === 'bf16' ? 1e-2 : 1e-5);
  });

  it('stand apart under dropout, whose masks are of each group', async () => {
    using model = await tinyModel('qwen2');
    const groups = votes(model.config.vocabSize);
    const objective = { read: 'logps', squares: false } as Objective;
    for (const dropout of [0, 0.3]) {
      const policy = { model, bank: randomBank(model, ['u'], { dropout }), adapter: 0 };
      expect(policy.bank.drops).toBe(dropout > 0);
      const rows = async (dropoutSeed: number) =>
        (await scoreGroups(groups, objective, policy, null, { dropoutSeed })).pack.native.tokens.length;
      expect((await rows(9)) > (await rows(0))).toBe(dropout > 0);
    }
  });

  it('trees stay small enough to share out', () => {
    const [first, ...rest] = randomGroups(60, 50, 4, 40);
    const groups = [first, ...rest].map((group) => ({ ...group, prompt: first.prompt }));
    const trees = groups.map((group) => ({ group, adapter: -1, grad: false }));
    for (const most of [100, 250, true] as const) {
      const { native } = packTrees(trees, { read: 'logps', merge: most });
      const sizes: number[] = [];
      native.parents.forEach((parent, s) => {
        const length = native.segmentStarts[s + 1] - native.segmentStarts[s];
        if (parent < 0) sizes.push(length);
        else sizes[sizes.length - 1] += length;
      });
      expect(sizes.length).toBeGreaterThan(2);
      expect(Math.max(...sizes)).toBeLessThanOrEqual(most === true ? 600 : most);
      expect(sizes.reduce((a, b) => a + b)).toBe(native.tokens.length);
    }
    expect(mergeLimit(trees, { sharesPacks: false })).toBe(1024);
  });

  it('trees are of a size that threads share evenly', () => {
    const [first, ...rest] = randomGroups(61, 50, 4, 40);
    const groups = [first, ...rest].map((group) => ({ ...group, prompt: first.prompt }));
    const learners = (some: readonly Group[]) => some.map((group) => ({ group, adapter: 0, grad: true }));
    const sizesUnder = (some: typeof groups, merge: number) => {
      const { parents, segmentStarts } = packTrees(learners(some), { read: 'logps', merge }).native;
      const roots = [...parents.keys()].filter((s) => parents[s] < 0);
      return roots.map((s, i) => segmentStarts[roots[i + 1] ?? parents.length] - segmentStarts[s]);
    };
    /** The busiest of `threads` where each takes the largest tree that is left. */
    const busiest = (sizes: number[], threads: number) => {
      const busy = Array.from({ length: threads }, () => 0);
      for (const size of sizes.sort((a, b) => b - a)) busy[busy.indexOf(Math.min(...busy))] += size;
      return Math.max(...busy);
    };
    const sum = (sizes: number[]) => sizes.reduce((a, b) => a + b, 0);
    const cost = (sizes: number[]) => sum(sizes) + 2 * busiest(sizes, 2) + 2 * busiest(sizes, 4);
    for (const n of [2, 8, 13, 30]) {
      const some = groups.slice(0, n);
      const chosen = mergeLimit(learners(some), { sharesPacks: true });
      for (let most = 250; most <= 700; most += 50)
        expect(cost(sizesUnder(some, chosen))).toBeLessThanOrEqual(cost(sizesUnder(some, most)));
    }
    // Under two policies each has trees of its own, in whatever order they are given.
    const eight = groups.slice(0, 8);
    const both = eight.flatMap((group) => [0, 1].map((adapter) => ({ group, adapter, grad: true })));
    const twice = (merge: number) => [...sizesUnder(eight, merge), ...sizesUnder(eight, merge)];
    for (let most = 250; most <= 700; most += 50)
      expect(cost(twice(mergeLimit(both, { sharesPacks: true })))).toBeLessThanOrEqual(cost(twice(most)));
    // Nothing to merge.
    expect(mergeLimit(learners(randomGroups(62, 50, 2, 8)), { sharesPacks: true })).toBe(600);
  });
});

describe("a reference in the policy's own pack", () => {
  const objective = {
    read: 'logps',
    squares: true,
    summing: 'tokens',
    sums: (_, values, offsets) => sumTokens(values, offsets),
  } as Objective;

  it.each([false, true])('scores and gradients are those of two passes (cached %s)', async (cache) => {
    using model = await tinyModel('qwen3');
    expect(model.sharesPacks).toBe(testDevice === 'cpu');
    const bank = randomBank(model, ['u']);
    const groups = randomGroups(40, model.config.vocabSize, 2, 6);
    const policy = { model, bank, adapter: 0 };
    const base = () => new PolicyReference({ model, bank: null, adapter: -1 }, cache, 4096);
    const inside = base();
    const step = async (some: typeof groups, reference: Reference | null, expected?: Float64Array) => {
      const { scores, pack: p } = await scoreGroups(some, objective, policy, reference, { keep: true });
      bank.zeroGrad();
      const gradient = Float32Array.from(scores.values, (_, i) => Math.sin(i));
      await model.backward(p, bank, backwardGradient(p, gradient));
      if (expected) expect(scores.reference).toEqual(expected);
      return {
        values: scores.values,
        squares: scores.squares,
        offsets: scores.offsets,
        gradients: bank.gradients.slice(),
      };
    };
    // Some are known by now, so that only the others stand in the pack.
    const few = groups.slice(3, 17);
    await step(few, inside, await base().sums(few, objective));
    const apart = await step(groups, null);
    expect(await step(groups, inside, await base().sums(groups, objective))).toEqual(apart);
    expect(inside.missing(groups, objective)).toEqual(cache ? [] : groups);
    expect(Number.isFinite(norm(apart.gradients))).toBe(true);
  });

  it('another model or an adapter stays in a pass of its own', async () => {
    using model = await tinyModel('qwen3');
    using same = await tinyModel('qwen3');
    const bank = randomBank(model, ['u']);
    const of = (scorer: Scorer) => new PolicyReference(scorer, false, 1024).besides({ model, bank });
    expect(of({ model, bank: null, adapter: -1 })).toBe(model.sharesPacks);
    expect(of({ model: same, bank: null, adapter: -1 })).toBe(false);
    expect(of({ model, bank, adapter: 0 })).toBe(false);
    expect(of({ model, bank, adapter: () => 0 })).toBe(false);
  });

  it('weights in training are not their own reference', async () => {
    using model = await tinyModel('qwen3');
    const bank = Bank.full(model.weightShapes(), (name) => model.weight(name));
    bank.parameters.forEach((x, i) => {
      bank.parameters[i] = x + 0.02 * Math.sin(i);
    });
    const groups = randomGroups(6, model.config.vocabSize);
    const reference = new PolicyReference({ model, bank: null, adapter: -1 }, false, 4096);
    const { scores } = await scoreGroups(groups, objective, { model, bank, adapter: 0 }, reference, { keep: true });
    expect(scores.reference).toEqual(await reference.sums(groups, objective));
    expect(scores.reference).not.toEqual(objective.sums(groups, scores.values, scores.offsets));
  });
});
