import type { NativeTiming } from '../native/kernels.js';
import { addon } from '../native/loader.js';
import { type BenchOptions, type BenchRecord, digits, dtypes, median, runCases } from './session.js';

type Dtype = ReturnType<typeof dtypes>[number];

interface Case {
  op: string;
  /** Most significant first, as in the documentation of the operator. */
  shape: string;
  dtype: Dtype;
  /** Floating-point operations of one call. */
  operations: number;
  time(): Promise<Float64Array>;
}

const nativeType = (dtype: Dtype) => (dtype === 'bf16' ? 'bfloat16' : 'float32');

/** Linear layers [in, out] of models of 135M and 1B parameters, and the head of the former. */
const layers = [
  [576, 1536],
  [2048, 2048],
  [576, 49152],
] as const;
const rowCounts = [1, 32, 256, 2048];

function gemmCases(dtype: Dtype, timing: NativeTiming): Case[] {
  const shapes = layers.flatMap(([k, n]) => rowCounts.map((m) => ({ m, n, k })));
  // The head never makes the logits of that many rows at once.
  const used = shapes.filter(({ m, n }) => n <= 8192 || m <= 256);
  return used.map((shape) => ({
    op: 'linear',
    shape: `${shape.m}×${shape.k}→${shape.n}`,
    dtype,
    operations: 2 * shape.m * shape.n * shape.k,
    time: () => addon().bench.gemm({ ...timing, ...shape, dtype: nativeType(dtype), packed: true }),
  }));
}

const popularities = ['identical', 'distinct', 'uniform', 'skewed'] as const;

/**
 * How many of some requests each adapter gets, as in Punica's benchmark (Chen et al. 2023, section 7.1): one for all; one
 * each; √n adapters evenly; or the i-th most popular 1.5 times as many as the next.
 */
export function requestsByAdapter(popularity: (typeof popularities)[number], requests: number): number[] {
  if (popularity === 'identical') return [requests];
  if (popularity === 'distinct') return Array(requests).fill(1);
  const counts: number[] = [];
  const even = Math.ceil(requests / Math.ceil(Math.sqrt(requests)));
  for (let left = requests; left > 0; left -= counts.at(-1)!) {
    const wanted = popularity === 'uniform' ? even : Math.round(left / 3);
    counts.push(Math.min(left, Math.max(1, wanted)));
  }
  return counts;
}

function loraCases(dtype: Dtype, timing: NativeTiming): Case[] {
  const [requests, r] = [64, 16];
  const cases: Case[] = [];
  for (const [width, out] of [
    [576, 1536],
    [4096, 11008],
  ])
    for (const rowsEach of [1, 16])
      for (const popularity of popularities)
        for (const backward of [false, true]) {
          const counts = requestsByAdapter(popularity, requests);
          let row = 0;
          const segments = Int32Array.from(
            counts.flatMap((count) => {
              const start = row;
              row += count * rowsEach;
              return [start, row];
            }),
          );
          cases.push({
            op: `grouped-lora ${backward ? 'backward' : 'forward'}`,
            shape: `${row}×${width}→${out} r${r} ${popularity} (${counts.length})`,
            dtype,
            operations: (backward ? 4 : 2) * row * r * (width + out),
            time: () =>
              addon().bench.groupedLora({
                ...timing,
                cold: true,
                in: width,
                out,
                r,
                adapterCount: counts.length,
                segments,
                adapters: Int32Array.from(counts, (_, i) => i),
                dtype: nativeType(dtype),
                backward,
              }),
          });
        }
  return cases;
}

/**
 * Linear layers with a frozen weight (prepared once; operands warm) and grouped low-rank products (64 requests; caches
 * overwritten before every call), on random data, medians of several runs. `peak_share` is against the multiply-adds that
 * the same instruction set and threads do in registers, measured first.
 */
export async function benchOps(options: BenchOptions): Promise<BenchRecord[]> {
  const { threads, stop } = options;
  const { isa } = addon().cpu();
  const timing: NativeTiming = { threads, runs: 7, seconds: 0.02, cold: false, abort: stop.flag };
  const peak = median(await addon().bench.peak({ ...timing, seconds: 0.05 }));
  const records: BenchRecord[] = [
    {
      op: 'multiply-add',
      shape: 'registers',
      dtype: 'float32',
      threads,
      isa,
      gflops: digits(peak / 1e9),
      peak_share: 1,
    },
  ];
  const types = dtypes(options.dtype);
  // Low-rank products run in float32 whatever the activations are; one type of input says enough.
  const cases = [...types.flatMap((dtype) => gemmCases(dtype, timing)), ...loraCases(types[0], timing)];
  // A plain reference would take minutes over the largest.
  const most = peak * 0.5;
  const feasible = cases.filter(({ operations }) => operations <= most);
  const rest = cases.length - feasible.length;
  if (rest > 0)
    process.stderr.write(`bench: ${rest} shapes left out, too large for ${isa} at ${digits(peak / 1e9)} GFLOP/s\n`);
  const timed = await runCases('bench ops', feasible, stop, async ({ op, shape, dtype, operations, time }) => {
    const seconds = median(await time());
    const rate = operations / seconds;
    return [
      {
        op,
        shape,
        dtype,
        threads,
        isa,
        gflops: digits(rate / 1e9),
        peak_share: digits(rate / peak, 3),
        ms: digits(seconds * 1e3),
      },
    ];
  });
  return [...records, ...timed];
}
