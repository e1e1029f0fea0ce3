import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Bank } from '../adapters/bank.js';
import { adapterConfig } from '../adapters/config.js';
import { Random } from '../base/random.js';
import { type Pack, type Policy, pack, toCompletions, toReadouts } from '../data/pack.js';
import type { Group } from '../data/types.js';
import { pairLoss, spreadGradient, sumTokens } from '../losses/index.js';
import { nativeConfig, newConfig, parseModelConfig } from '../model/config.js';
import { writeSafetensors } from '../model/safetensors.js';
import type { NativeModelConfig } from '../native/addon.js';
import { addon } from '../native/loader.js';
import { type BenchOptions, type BenchRecord, checkStop, digits, dtypes, median, runCases } from './session.js';

interface Shape {
  name: string;
  config: Parameters<typeof newConfig>[0];
  pairs: number;
  prompt: number;
  completion: number;
  runs: number;
}

const small: Shape = {
  name: '656K (2 layers, 128)',
  config: { vocabSize: 2048, hiddenSize: 128, intermediateSize: 384, layers: 2, heads: 8, kvHeads: 4 },
  pairs: 8,
  prompt: 64,
  completion: 96,
  runs: 5,
};

const large: Shape = {
  name: '135M (30 layers, 576)',
  config: { vocabSize: 49152, hiddenSize: 576, intermediateSize: 1536, layers: 30, heads: 9, kvHeads: 3 },
  pairs: 2,
  prompt: 64,
  completion: 96,
  runs: 3,
};

/** Weights of a model that knows nothing, N(0, 0.02²); norms 1. A fixed block of draws is repeated: drawing 135M is slow. */
async function writeWeights(path: string, config: NativeModelConfig, dtype: 'F32' | 'BF16'): Promise<void> {
  const random = new Random(1);
  const draws = Float32Array.from({ length: 65521 }, () => 0.02 * random.normal());
  const tensors = addon()
    .weightShapes(config)
    .map(({ name, rows, cols }) => {
      const data = new Float32Array(rows * cols);
      if (/norm\.weight$/.test(name)) data.fill(1);
      else for (let at = 0; at < data.length; at += draws.length) data.set(draws.subarray(0, data.length - at), at);
      return { name, dtype, shape: rows === 1 ? [cols] : [rows, cols], data };
    });
  await writeSafetensors(path, tensors);
}

function randomPairs({ pairs, prompt, completion, config }: Shape): Group[] {
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

async function time(runs: number, stop: BenchOptions['stop'], body: () => Promise<void>): Promise<number> {
  await body();
  const seconds: number[] = [];
  for (let run = 0; run < runs; run++) {
    checkStop(stop);
    const start = performance.now();
    await body();
    seconds.push((performance.now() - start) / 1e3);
  }
  return median(seconds);
}

const adamw = { learningRate: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, maxGradNorm: 1 };

/** One shape in one type: scoring, scoring with its backward pass, and whole DPO steps. */
async function benchShape(
  shape: Shape,
  dtype: 'float32' | 'bf16',
  { threads, stop, quick }: BenchOptions,
): Promise<BenchRecord[]> {
  const folder = await mkdtemp(join(tmpdir(), 'pluralign-bench-'));
  try {
    const native = nativeConfig(parseModelConfig(newConfig(shape.config), 'bench'));
    const file = join(folder, 'model.safetensors');
    await writeWeights(file, native, dtype === 'bf16' ? 'BF16' : 'F32');
    const model = await addon().loadModel(native, [file], {
      dtype: dtype === 'bf16' ? 'bfloat16' : 'float32',
      threads,
    });
    const bank = Bank.create(native, adapterConfig({ r: 16, alpha: 32 }), ['default'], { seed: 3 });
    const groups = randomPairs(shape);
    const packFor = (policies: Policy[]) => pack(groups, { policies, read: 'logps' });
    const score = async (p: Pack, keep: boolean): Promise<Float32Array> => {
      const out = new Float32Array(p.native.rows.length);
      const options = { read: 'logps', keep, checkpoint: false, dropoutSeed: 0, abort: stop.flag } as const;
      await model.score(p.native, bank.native(), options, out);
      return out;
    };
    const backward = (gradient: Float32Array) => model.backward(bank.native(), gradient, stop.flag);

    const base = packFor([{ adapter: -1, grad: false }]);
    const adapted = packFor([{ adapter: 0, grad: true }]);
    const both = packFor([
      { adapter: 0, grad: true },
      { adapter: -1, grad: false },
    ]);
    const n = shape.pairs;
    const every = (values: Float64Array, first: number) =>
      Float64Array.from({ length: n }, (_, i) => values[first + 2 * i]);
    const tokens = new Float64Array(n).fill(shape.completion);
    const dpoStep = async () => {
      const sums = sumTokens(toCompletions(both, await score(both, true)), both.offsets);
      const { dChosen, dRejected } = pairLoss(
        {
          chosen: every(sums, 0),
          rejected: every(sums, 1),
          refChosen: every(sums, 2 * n),
          refRejected: every(sums, 2 * n + 1),
          chosenTokens: tokens,
          rejectedTokens: tokens,
        },
        { type: 'sigmoid', beta: 0.1 },
      );
      const gradient = new Float64Array(4 * n);
      for (let i = 0; i < n; i++) gradient.set([dChosen[i], dRejected[i]], 2 * i);
      bank.zeroGrad();
      await backward(toReadouts(both, Float32Array.from(spreadGradient(gradient, both.offsets))));
      await bank.step(adamw);
    };

    const ones = new Float32Array(adapted.native.rows.length).fill(-1);
    const works: [string, Pack, number, () => Promise<void>][] = [
      ['score', base, 1, async () => void (await score(base, false))],
      ['score + backward', adapted, 1, async () => void (await score(adapted, true).then(() => backward(ones)))],
      ['dpo step', both, 2, dpoStep],
    ];
    const records: BenchRecord[] = [];
    for (const [work, p, policies, body] of works) {
      const seconds = await time(quick ? 1 : shape.runs, stop, body);
      // Tokens of the rows, a prompt counted once; the second policy of a DPO step, the reference, adds none.
      const rows = p.native.tokens.length / policies;
      records.push({
        work,
        model: shape.name,
        dtype,
        threads,
        pairs: n,
        tokens: rows,
        ms: digits(seconds * 1e3),
        tokens_per_s: digits(rows / seconds),
        pairs_per_s: digits(n / seconds),
      });
    }
    model.dispose();
    return records;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/**
 * Throughput of one model of random weights: pairs of 64 prompt tokens, shared, and twice 96 completion tokens, no padding;
 * LoRA r 16 on every linear; medians. A DPO step scores adapter and reference in one pass, goes backward and steps.
 */
export async function benchTrain(options: BenchOptions): Promise<BenchRecord[]> {
  const shapes = options.large ? [small, large] : [small];
  const cases = shapes.flatMap((shape) => dtypes(options.dtype).map((dtype) => ({ shape, dtype })));
  return runCases('bench train', cases, options.stop, ({ shape, dtype }) => benchShape(shape, dtype, options));
}
