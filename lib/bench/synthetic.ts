import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Bank } from '../adapters/bank.js';
import { adapterConfig } from '../adapters/config.js';
import { Random } from '../base/random.js';
import {
  type Forest,
  type Policy,
  packTokens,
  packTrees,
  splitByTokens,
  type Tree,
  toCompletions,
  toReadouts,
} from '../data/pack.js';
import { passesOf } from '../data/passes.js';
import type { Group } from '../data/types.js';
import { pairLoss, spreadGradient, sumTokens } from '../losses/index.js';
import { nativeConfig, newConfig, parseModelConfig } from '../model/config.js';
import { toBf16, writeSafetensors } from '../model/safetensors.js';
import type { NativeModel, NativeModelConfig } from '../native/addon.js';
import { type ChosenDevice, deviceName } from '../native/device.js';
import { addon } from '../native/loader.js';

/** A model to time, and the rows of a step: `pairs` prompts, each with two completions, lengths in tokens. */
export interface Shape {
  name: string;
  config: Parameters<typeof newConfig>[0];
  pairs: number;
  prompt: number;
  completion: number;
  runs: number;
}

export const small: Shape = {
  name: '656K (2 layers, 128)',
  config: { vocabSize: 2048, hiddenSize: 128, intermediateSize: 384, layers: 2, heads: 8, kvHeads: 4 },
  pairs: 8,
  prompt: 64,
  completion: 96,
  runs: 5,
};

export const large: Shape = {
  name: '135M (30 layers, 576)',
  config: { vocabSize: 49152, hiddenSize: 576, intermediateSize: 1536, layers: 30, heads: 9, kvHeads: 3 },
  pairs: 2,
  prompt: 64,
  completion: 96,
  runs: 3,
};

/** Weights of a model that knows nothing, N(0, 0.02²); norms 1. A fixed block of draws is repeated: drawing billions is slow. */
async function writeWeights(path: string, config: NativeModelConfig, dtype: 'F32' | 'BF16'): Promise<void> {
  const random = new Random(1);
  const draws = Float32Array.from({ length: 1 << 20 }, () => 0.02 * random.normal());
  const block = (values: Float32Array) => new Uint8Array((dtype === 'F32' ? values : toBf16(values)).buffer);
  const blocks = { draws: block(draws), ones: block(new Float32Array(draws.length).fill(1)) };
  const size = dtype === 'F32' ? 4 : 2;
  const tensors = addon()
    .weightShapes(config)
    .map(({ name, rows, cols }) => ({
      name,
      dtype,
      shape: rows === 1 ? [cols] : [rows, cols],
      *data() {
        const own = /norm\.weight$/.test(name) ? blocks.ones : blocks.draws;
        for (let left = rows * cols * size; left > 0; left -= own.length)
          yield own.subarray(0, Math.min(left, own.length));
      },
    }));
  await writeSafetensors(path, tensors);
}

/** Pairs of random tokens. */
export function randomPairs({ pairs, prompt, completion, config }: Omit<Shape, 'name' | 'runs'>): Group[] {
  const random = new Random(2);
  const ids = (n: number) => Int32Array.from({ length: n }, () => random.below(config.vocabSize));
  return Array.from({ length: pairs }, (_, index) => ({
    index,
    kind: 'pair',
    prompt: ids(prompt),
    completions: [ids(completion), ids(completion)],
    weight: 1,
    origin: { file: 'random', line: index + 1 },
  }));
}

const adamw = { learningRate: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 1 };

/** A model of random weights, and the passes over it that are timed. */
export class SyntheticModel implements Disposable {
  private constructor(
    readonly native: NativeModel,
    readonly config: NativeModelConfig,
    readonly flag: Int32Array,
    readonly device: string,
  ) {}

  static async open(
    shape: Pick<Shape, 'config'>,
    options: { dtype: 'float32' | 'bf16'; threads: number; flag: Int32Array; chosen?: ChosenDevice | null },
  ): Promise<SyntheticModel> {
    const { dtype, threads, flag, chosen } = options;
    const folder = await mkdtemp(join(tmpdir(), 'pluralign-bench-'));
    try {
      const config = nativeConfig(parseModelConfig(newConfig(shape.config), 'bench'));
      const file = join(folder, 'model.safetensors');
      await writeWeights(file, config, dtype === 'bf16' ? 'BF16' : 'F32');
      const model = await addon().loadModel(config, [file], {
        dtype: dtype === 'bf16' ? 'bfloat16' : 'float32',
        threads,
        ...chosen,
      });
      return new SyntheticModel(model, config, flag, deviceName(chosen ?? null));
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  }

  [Symbol.dispose](): void {
    this.native.dispose();
  }

  /** Adapters on every linear. */
  bank(adapters: number, r = 16): Bank {
    const names = Array.from({ length: adapters }, (_, k) => `policy_${k + 1}`);
    return Bank.create(this.config, adapterConfig({ r, alpha: 2 * r }), names, { seed: 3 });
  }

  async score(p: Forest, bank: Bank, keep: boolean): Promise<Float32Array> {
    const out = new Float32Array(p.native.rows.length);
    const options = { read: 'logps', keep, checkpoint: false, dropoutSeed: 0, abort: this.flag } as const;
    await this.native.score(p.native, bank.native(), options, out);
    return out;
  }

  async backward(bank: Bank, gradient: Float32Array): Promise<void> {
    await this.native.backward(bank.native(), gradient, this.flag);
  }

  /**
   * Packs pairs under adapters that train and the reference, as a step would: where threads take shares of a pack, the
   * reference beside the policies; else first, in passes of its own.
   */
  passes(groups: readonly Group[], adapters: readonly number[], reference: boolean, tokens?: number): Forest[] {
    const most = tokens ?? packTokens({ max_tokens_per_pack: 'auto', device: 'cpu' }, { model: this.native });
    const policies = adapters.map((adapter) => ({ adapter, grad: true }));
    const base = reference ? [{ adapter: -1, grad: false }] : [];
    const under = (some: readonly Group[], who: readonly Policy[]) =>
      who.flatMap((policy) => some.map((group) => ({ group, ...policy })));
    const passes = this.native.sharesPacks
      ? splitByTokens(groups, policies.length + base.length, most).map((some) => under(some, [...policies, ...base]))
      : [base, policies].flatMap((who) => passesOf(under(groups, who), most, false));
    return passes.map((trees) => packTrees(trees, { read: 'logps' }));
  }

  /** Sums of log-probabilities of every completion, tree by tree. */
  async sums(p: Forest, bank: Bank, keep: boolean): Promise<Float64Array> {
    return sumTokens(toCompletions(p, await this.score(p, bank, keep)), p.offsets);
  }

  /**
   * One step of DPO of every policy that trains, pass by pass. `reference`: log-probabilities of each pair's chosen and rejected
   * completion under the base, for passes that have none of it; takes those that are scored.
   */
  async dpo(passes: readonly Forest[], bank: Bank, reference: PairScores = new Map()): Promise<void> {
    await bank.moveTo(this);
    bank.zeroGrad();
    for (const p of passes) await this.#dpoPass(p, bank, reference);
    await bank.step(adamw);
  }

  /** Scores pairs under the base. */
  async reference(passes: readonly Forest[], bank: Bank): Promise<PairScores> {
    const out: PairScores = new Map();
    for (const p of passes) learn(p, await this.sums(p, bank, false), out);
    return out;
  }

  async #dpoPass(p: Forest, bank: Bank, reference: PairScores): Promise<void> {
    const train = p.trees[0].grad;
    const sums = await this.sums(p, bank, train);
    learn(p, sums, reference);
    if (!train) return;
    const trained = p.trees.filter((tree) => tree.grad);
    const every = (value: (tree: Tree, t: number) => number) => Float64Array.from(trained, value);
    const tokens = every(({ group }) => group.completions[0].length);
    const { dChosen, dRejected } = pairLoss(
      {
        chosen: every((_, t) => sums[2 * t]),
        rejected: every((_, t) => sums[2 * t + 1]),
        refChosen: every(({ group }) => reference.get(group)![0]),
        refRejected: every(({ group }) => reference.get(group)![1]),
        chosenTokens: tokens,
        rejectedTokens: tokens,
      },
      { type: 'sigmoid', beta: 0.1 },
    );
    const gradient = new Float64Array(p.offsets.length - 1);
    trained.forEach((_, t) => {
      gradient.set([dChosen[t], dRejected[t]], 2 * t);
    });
    await this.backward(bank, toReadouts(p, Float32Array.from(spreadGradient(gradient, p.offsets))));
  }
}

type PairScores = Map<Group, readonly [chosen: number, rejected: number]>;

/** What the base says of the pairs of a pass. */
function learn(p: Forest, sums: Float64Array, into: PairScores): void {
  p.trees.forEach(({ group, adapter }, t) => {
    if (adapter < 0) into.set(group, [sums[2 * t], sums[2 * t + 1]]);
  });
}
