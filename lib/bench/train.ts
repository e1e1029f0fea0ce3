import type { Forest } from '../data/pack.js';
import { addon } from '../native/loader.js';
import { operationsOf } from './operations.js';
import { type BenchOptions, type BenchRecord, checkStop, digits, dtypes, median, runCases } from './session.js';
import { large, randomPairs, type Shape, SyntheticModel, small } from './synthetic.js';

type Dtype = 'float32' | 'bf16';

/** Something to time, and the tokens of its rows, a prompt counted once and a reference not at all. */
interface Work {
  name: string;
  rows: number;
  /** Floating-point operations of one turn. */
  operations: number;
  body: () => Promise<void>;
}

/** Median seconds of each work. They take turns, so that a slow spell of the machine meets all of them. */
async function timeInTurn(works: readonly Work[], runs: number, stop: BenchOptions['stop']): Promise<number[]> {
  const seconds = works.map((): number[] => []);
  for (let run = -1; run < runs; run++)
    for (const [i, { body }] of works.entries()) {
      checkStop(stop);
      const start = performance.now();
      await body();
      if (run >= 0) seconds[i].push((performance.now() - start) / 1e3);
    }
  return seconds.map(median);
}

const policies = 4;

const rank = 16;

/** Operations of scoring everything in some passes and, where `back`, of going back through the trees that train. */
function operationsIn(passes: readonly Forest[], model: SyntheticModel, back: boolean): number {
  let sum = 0;
  for (const tree of passes.flatMap((p) => p.trees)) {
    const { forward, backward } = operationsOf([tree], model.config, tree.adapter < 0 ? 0 : rank);
    sum += forward + (back && tree.grad ? backward : 0);
  }
  return sum;
}

/** Floating-point operations a second that this processor does in registers, on one thread; null on a GPU. */
async function peakOf(dtype: Dtype, { stop, quick, chosen }: BenchOptions): Promise<number | null> {
  if (chosen) return null;
  const timing = { threads: 1, runs: quick ? 1 : 7, seconds: quick ? 0.005 : 0.05, cold: false, abort: stop.flag };
  return median(await addon().bench.peak({ ...timing, dtype: dtype === 'bf16' ? 'bfloat16' : 'float32' }));
}

const tokensOf = (passes: readonly Forest[]) => passes.reduce((n, p) => n + p.native.tokens.length, 0);

/** Four policies that train and the reference on the same pairs: at once in passes that they fill together, and as five runs one after another. */
function together(model: SyntheticModel, shape: Shape): [Work, Work] {
  const groups = randomPairs(shape);
  const bank = model.bank(policies, rank);
  const everyone = Array.from({ length: policies }, (_, k) => k);
  const whole = model.passes(groups, everyone, true);
  const single = model.bank(1, rank);
  const alone = model.passes(groups, [0], false);
  const base = model.passes(groups, [], true);
  const rows = policies * tokensOf(alone);
  return [
    {
      name: '4 policies + reference, together',
      rows,
      operations: operationsIn(whole, model, true),
      body: () => model.dpo(whole, bank),
    },
    {
      name: '4 policies + reference, five runs',
      rows,
      operations: operationsIn(base, model, false) + policies * operationsIn(alone, model, true),
      body: async () => {
        const reference = await model.reference(base, single);
        for (const _ of everyone) await model.dpo(alone, single, reference);
      },
    },
  ];
}

/** One shape in one type: scoring, scoring with its backward pass, whole DPO steps, and four policies at once. */
async function benchShape(
  shape: Shape,
  dtype: Dtype,
  options: BenchOptions,
  done: (record: BenchRecord) => void,
): Promise<void> {
  const { threads, stop, quick, chosen } = options;
  const peak = await peakOf(dtype, options);
  using model = await SyntheticModel.open(shape, { dtype, threads, flag: stop.flag, chosen });
  const groups = randomPairs(shape);
  const bank = model.bank(1, rank);
  const base = model.passes(groups, [], true);
  const adapted = model.passes(groups, [0], false);
  const both = model.passes(groups, [0], true);
  const tokens = tokensOf(adapted);
  const minus = (p: Forest) => new Float32Array(p.native.rows.length).fill(-1);
  const runs = quick ? 1 : shape.runs;
  const record = ({ name, rows, operations }: Work, seconds: number): BenchRecord => ({
    work: name,
    model: shape.name,
    dtype,
    threads,
    pairs: groups.length,
    tokens: rows,
    ms: digits(seconds * 1e3),
    tokens_per_s: digits(rows / seconds),
    pairs_per_s: digits((rows / tokens) * (groups.length / seconds)),
    gflop: digits(operations / 1e9),
    ...(peak && { peak_share: digits(operations / seconds / (peak * threads), 3) }),
  });
  const plain: Work[] = [
    {
      name: 'score',
      rows: tokens,
      operations: operationsIn(base, model, false),
      body: async () => {
        for (const p of base) await model.score(p, bank, false);
      },
    },
    {
      name: 'score + backward',
      rows: tokens,
      operations: operationsIn(adapted, model, true),
      body: async () => {
        for (const p of adapted) {
          await model.score(p, bank, true);
          await model.backward(bank, minus(p));
        }
      },
    },
    {
      name: 'dpo step',
      rows: tokens,
      operations: operationsIn(both, model, true),
      body: () => model.dpo(both, bank),
    },
  ];
  for (const work of plain) done(record(work, (await timeInTurn([work], runs, stop))[0]));
  const pair = together(model, shape);
  const [one, five] = await timeInTurn(pair, runs, stop);
  done({ ...record(pair[0], one), of_five_runs: digits(one / five) });
  done(record(pair[1], five));
}

/**
 * Throughput of one model of random weights: pairs of 64 prompt tokens, shared, and twice 96 completion tokens, no padding;
 * LoRA r 16 on every linear; medians. A DPO step scores adapter and reference, goes backward and steps. Of four
 * policies, `pairs_per_s` and `tokens_per_s` count a pair once for each policy; `of_five_runs` is the time of all together over
 * that of five runs. `gflop`: what the model's definition asks for (`operationsOf`), `peak_share` the rate of it against the
 * multiply-adds of that type that as many threads do in registers, each as fast as one alone.
 */
export async function benchTrain(options: BenchOptions): Promise<BenchRecord[]> {
  const shapes = options.large ? [small, large] : [small];
  const cases = shapes.flatMap((shape) => dtypes(options.dtype).map((dtype) => ({ shape, dtype })));
  return runCases('bench train', cases, options.stop, ({ shape, dtype }, done) =>
    benchShape(shape, dtype, options, done),
  );
}
