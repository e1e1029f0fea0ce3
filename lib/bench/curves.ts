import { packTrees } from '../data/pack.js';
import { type BenchOptions, type BenchRecord, checkStop, digits, dtypes, median, runCases } from './session.js';
import { large, randomPairs, type Shape, SyntheticModel, small } from './synthetic.js';

/** One point: what is varied, and a pass of so many pairs, tokens, adapters. */
interface Point {
  curve: string;
  x: number;
  pairs: number;
  prompt: number;
  completion: number;
  adapters: number;
  rank: number;
  threads: number;
}

/** What grows with what: a step of 1,024 tokens under one adapter of rank 16 on one thread, and one thing varied at a time. */
function points(threads: number, quick: boolean): Point[] {
  const still = { pairs: 4, prompt: 64, completion: 96, adapters: 1, rank: 16, threads: 1 };
  const vary = (curve: string, xs: readonly number[], change: (x: number) => Partial<Point>): Point[] =>
    (quick ? xs.slice(0, 2) : xs).map((x) => ({ ...still, curve, x, ...change(x) }));
  return [
    ...vary('tokens of the pass', [256, 512, 1024, 2048, 4096, 8192], (x) => ({ pairs: x / 256 })),
    // Longer rows, fewer of them: as many tokens, and the attention of each over more.
    ...vary('tokens of a row', [128, 256, 512, 1024, 2048, 4096], (x) => ({
      pairs: 4096 / (2 * x),
      prompt: 0.25 * x,
      completion: 0.75 * x,
    })),
    ...vary('adapters', [1, 2, 4, 8, 16], (adapters) => ({ adapters, pairs: 16 })),
    ...vary('rank', [4, 8, 16, 32, 64, 128], (rank) => ({ rank })),
    ...vary(
      'threads',
      [1, 2, 4, 8, 16, 32, 64].filter((n) => n <= threads),
      (n) => ({ threads: n, pairs: 8 }),
    ),
  ];
}

async function timePoint(
  shape: Shape,
  dtype: 'float32' | 'bf16',
  point: Point,
  { stop, quick, chosen }: BenchOptions,
): Promise<BenchRecord> {
  const { pairs, prompt, completion, adapters, rank, threads } = point;
  using model = await SyntheticModel.open(shape, { dtype, threads, flag: stop.flag, chosen });
  const groups = randomPairs({ config: shape.config, pairs: Math.max(1, pairs), prompt, completion });
  const bank = model.bank(adapters, rank);
  const p = packTrees(
    groups.map((group, i) => ({ group, adapter: i % adapters, grad: true })),
    { read: 'logps' },
  );
  const ones = new Float32Array(p.native.rows.length).fill(-1);
  const [forward, back]: [number[], number[]] = [[], []];
  for (let run = -1; run < (quick ? 1 : shape.runs); run++) {
    checkStop(stop);
    const [a, cpuA] = [performance.now(), process.cpuUsage()];
    await model.score(p, bank, true);
    const [b, cpuB] = [performance.now(), process.cpuUsage(cpuA)];
    await model.backward(bank, ones);
    const cpuC = process.cpuUsage(cpuA);
    if (run < 0) continue;
    // One thread of the processor: the time it computed for, which other processes do not lengthen.
    const own = threads === 1 && !chosen;
    const scored = cpuB.user + cpuB.system;
    forward.push(own ? scored : 1e3 * (b - a));
    back.push(own ? cpuC.user + cpuC.system - scored : 1e3 * (performance.now() - b));
  }
  const tokens = p.native.tokens.length;
  const { activations } = model.native.memory();
  return {
    model: shape.name,
    dtype,
    curve: point.curve,
    x: point.x,
    tokens,
    forward_us_per_token: digits(median(forward) / tokens, 3),
    backward_us_per_token: digits(median(back) / tokens, 3),
    activations_kb_per_token: digits(activations / 1024 / tokens, 3),
  };
}

/**
 * Cost curves of scoring (activations kept) and going backward, LoRA on every linear, random weights and tokens: time and
 * memory of a token against tokens of the pass, context, adapters, rank and threads. With one thread times are the
 * processor's, with more what passed.
 */
export async function benchCurves(options: BenchOptions): Promise<BenchRecord[]> {
  const shape = options.large ? large : small;
  const cases = dtypes(options.dtype).flatMap((dtype) =>
    points(options.threads, options.quick ?? false).map((point) => ({ dtype, point })),
  );
  return runCases('bench train --curves', cases, options.stop, async ({ dtype, point }, done) =>
    done(await timePoint(shape, dtype, point, options)),
  );
}
