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

const gflops = (rate: number) => digits(rate / 1e9);

/**
 * Linear layers with a frozen weight (prepared once; operands warm) and grouped low-rank products (64 requests; caches
 * overwritten before every call), on random data, medians of several runs. `peak_share` is against the multiply-adds that
 * the same instruction set and threads do in registers, measured before and after; the higher counts.
 */
export async function benchOps(options: BenchOptions): Promise<BenchRecord[]> {
  const { threads, stop, quick = false } = options;
  const { isa } = addon().cpu();
  const timing: NativeTiming = {
    threads,
    runs: quick ? 1 : 7,
    seconds: quick ? 0 : 0.02,
    cold: false,
    abort: stop.flag,
  };
  const measurePeak = async () => median(await addon().bench.peak({ ...timing, seconds: quick ? 0.005 : 0.05 }));
  const before = await measurePeak();
  const types = dtypes(options.dtype);
  // Low-rank products run in float32 whatever the activations are; one type of input says enough.
  const cases = [...types.flatMap((dtype) => gemmCases(dtype, timing)), ...loraCases(types[0], timing)];
  // A plain reference would take minutes over the largest.
  const feasible = cases.filter(({ operations }) => operations <= (quick ? 1e7 : before * 0.5));
  const rest = cases.length - feasible.length;
  if (rest > 0 && !quick)
    process.stderr.write(`bench: ${rest} shapes left out, too large for ${isa} at ${gflops(before)} GFLOP/s\n`);
  const rates: number[] = [];
  const timed = await runCases('bench ops', feasible, stop, async ({ op, shape, dtype, operations, time }) => {
    const seconds = median(await time());
    rates.push(operations / seconds);
    return [
      {
        op,
        shape,
        dtype,
        threads,
        isa,
        gflops: gflops(operations / seconds),
        peak_share: 0,
        ms: digits(seconds * 1e3),
      },
    ];
  });
  const after = await measurePeak();
  if (Math.max(before, after) > 1.2 * Math.min(before, after) && !quick)
    process.stderr.write(
      `bench: the peak was ${gflops(before)} GFLOP/s before and ${gflops(after)} after: something else keeps the processor busy, and the times are too long\n`,
    );
  const peak = Math.max(before, after);
  timed.forEach((record, i) => {
    record.peak_share = digits(rates[i] / peak, 3);
  });
  const first = { op: 'multiply-add', shape: 'registers', dtype: 'float32', threads, isa };
  return [{ ...first, gflops: gflops(peak), peak_share: 1 }, ...timed];
}
