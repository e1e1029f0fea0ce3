// What the tests of the engine share: tiny models, groups of random tokens, a DPO loss and finite differences.
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Bank } from '../../lib/adapters/bank.js';
import { type AdapterConfig, adapterConfig } from '../../lib/adapters/config.js';
import { Random } from '../../lib/base/random.js';
import { type Pack, type Policy, pack } from '../../lib/data/pack.js';
import type { Group } from '../../lib/data/types.js';
import { pairLoss, spreadGradient, sumTokens } from '../../lib/losses/index.js';
import { newConfig, parseModelConfig } from '../../lib/model/config.js';
import { Model, type ScoreOptions } from '../../lib/model/model.js';
import { loadTokenizer } from '../../lib/model/tokenizer.js';
import type { DeviceName } from '../../lib/native/device.js';

export const fixtures = fileURLToPath(new URL('../fixtures', import.meta.url));

/** The device that engine tests run on: PLURALIGN_TEST_DEVICE, else the CPU. */
export const testDevice = (process.env.PLURALIGN_TEST_DEVICE ?? 'cpu') as DeviceName;

/** The model of `test/fixtures/parity-NAME`. */
export const tinyModel = (name: string, threads = 2, dtype: 'float32' | 'bf16' = 'float32') =>
  Model.load(join(fixtures, `parity-${name}`, 'model'), { dtype, threads, device: testDevice });

/** Pairs of random tokens below `vocabulary`. */
export function randomGroups(count: number, vocabulary: number, seed = 1, longest = 9): Group[] {
  const random = new Random(seed, 0, 0, 0);
  const ids = () =>
    Int32Array.from({ length: 1 + (random.next() % longest) }, () => random.next() % Math.min(vocabulary, 270));
  return Array.from({ length: count }, (_, index) => ({
    index,
    kind: 'pair',
    prompt: ids(),
    completions: [ids(), ids()],
    weight: 1,
    origin: { file: 'random', line: index + 1 },
  }));
}

/** Fills every factor with values that give every factor a gradient (a new B is zero). */
export function shake(bank: Bank, seed = 5, size = 0.2): Bank {
  const random = new Random(seed, 0, 0, 0);
  for (let i = 0; i < bank.parameters.length; i++) bank.parameters[i] += size * random.normal();
  return bank;
}

/** A bank of new adapters, shaken. */
export function randomBank(model: Model, names: string[], config: Partial<AdapterConfig> = {}): Bank {
  return shake(Bank.create(model.shape, adapterConfig({ r: 3, alpha: 6, ...config }), names, { seed: 3 }));
}

export const learning = (adapter: number): Policy => ({ adapter, grad: true });
export const frozen = (adapter: number): Policy => ({ adapter, grad: false });

/** DPO over the pack's first policy, with reference log-probabilities of 0; β = ½. */
export function dpo(p: Pack, values: Float32Array): { loss: number; gradient: Float32Array } {
  const n = p.groups.length;
  const sums = sumTokens(values, p.offsets);
  const at = (c: number) => Float64Array.from({ length: n }, (_, i) => sums[2 * i + c]);
  const zero = new Float64Array(n);
  const tokens = (c: number) => Float64Array.from(p.groups, (g) => g.completions[c].length);
  const { loss, dChosen, dRejected } = pairLoss(
    {
      chosen: at(0),
      rejected: at(1),
      refChosen: zero,
      refRejected: zero,
      chosenTokens: tokens(0),
      rejectedTokens: tokens(1),
    },
    { type: 'sigmoid', beta: 0.5 },
  );
  const dSums = new Float64Array(sums.length);
  for (let i = 0; i < n; i++) {
    dSums[2 * i] = dChosen[i];
    dSums[2 * i + 1] = dRejected[i];
  }
  return { loss, gradient: spreadGradient(dSums, p.offsets) };
}

/** Gradient of the DPO loss of groups under one adapter: a copy of the bank's gradients. */
export async function dpoGradient(
  model: Model,
  bank: Bank,
  groups: Group[],
  options: ScoreOptions & { adapter?: number } = {},
): Promise<Float32Array> {
  const p = pack(groups, { policies: [learning(options.adapter ?? 0)], read: 'logps' });
  const { values } = await model.score(p, bank, 'logps', { ...options, keep: true });
  bank.zeroGrad();
  await model.backward(p, bank, dpo(p, values).gradient);
  return bank.gradients.slice();
}

export const norm = (v: ArrayLike<number>) => Math.sqrt(Array.from(v).reduce((s, x) => s + x * x, 0));

/** ‖a − b‖ / ‖b‖. */
export function distance(a: ArrayLike<number>, b: ArrayLike<number>): number {
  return norm(Float64Array.from(a, (x, i) => x - b[i])) / norm(b);
}

/**
 * Compares a factor's gradient with the five-point difference along a random direction of signs. Gives the difference
 * relative to the derivative, and the derivative. The direction is one along which the derivative is at least half the
 * gradient's norm, so that a part of the gradient that is missing shows.
 */
export async function directional(
  bank: Bank,
  factor: number,
  gradient: Float32Array,
  loss: () => Promise<number>,
): Promise<{ error: number; derivative: number }> {
  const { offset, rows, cols } = bank.factors[factor];
  const g = gradient.subarray(offset, offset + rows * cols);
  const values = bank.values(factor);
  const before = values.slice();
  const random = new Random(11, factor, 0, 0);
  const size = norm(g);
  let signs: number[];
  let derivative: number;
  do {
    signs = Array.from(g, () => (random.next() & 1 ? 1 : -1));
    derivative = g.reduce((sum, x, i) => sum + x * signs[i], 0);
  } while (Math.abs(derivative) < size / 2);
  // A loss that moves by 0.01 stands far above float32's rounding; a step of 2 % of the values keeps the rest small.
  const h = Math.min(0.01 / Math.abs(derivative), (0.02 * norm(before)) / Math.sqrt(before.length));
  const at = async (k: number) => {
    before.forEach((x, i) => {
      values[i] = x + k * h * signs[i];
    });
    return loss();
  };
  const found = (8 * ((await at(1)) - (await at(-1))) - ((await at(2)) - (await at(-2)))) / (12 * h);
  values.set(before);
  return { error: Math.abs(found - derivative) / Math.abs(derivative), derivative };
}

/** A model without files, deep and wide enough that scoring `pairs` takes a while: for what happens in the middle of a job. */
export async function slowModel(options: { pairs?: number; layers?: number; threads?: number } = {}) {
  const { pairs = 50, layers = 16, threads = 1 } = options;
  const tokenizer = await loadTokenizer(join(fixtures, 'parity-qwen3', 'model'));
  const config = parseModelConfig(newConfig({ vocabSize: 280, hiddenSize: 128, layers, heads: 4 }), 'slow model');
  const model = Model.empty(config, tokenizer, { threads });
  const bank = Bank.full(model.weightShapes(), (name) => {
    const { rows, cols } = model.weightShapes().find((weight) => weight.name === name)!;
    return Float32Array.from({ length: rows * cols }, (_, i) => (rows === 1 ? 1 : 0.05 * Math.sin(i * 1.7)));
  });
  const p = pack(randomGroups(pairs, 270, 6, 20), { policies: [learning(0)], read: 'logps' });
  return { model, bank, p, ones: new Float32Array(p.native.rows.length).fill(1) };
}
