import { isAborted } from '../native/errors.js';
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
  /** Bytes read and written by one call of an operator that moves more than it computes. */
  bytes?: number;
  time(): Promise<Float64Array>;
  /** The same work in other ways. */
  others?: Record<string, () => Promise<Float64Array>>;
}

const nativeType = (dtype: Dtype) => (dtype === 'bf16' ? 'bfloat16' : 'float32');

/** Linear layers [in, out] of models of 135M and 1B parameters, and the head of the former. */
const layers = [
  [576, 1536],
  [1536, 576],
  [2048, 2048],
  [576, 49152],
] as const;
const rowCounts = [1, 32, 256, 2048];

function gemmCases(dtype: Dtype, timing: NativeTiming): Case[] {
  const shapes = layers.flatMap(([k, n]) => rowCounts.map((m) => ({ m, n, k })));
  // The head never makes the logits of that many rows at once.
  const used = shapes.filter(({ m, n }) => n <= 8192 || m <= 256);
  const time = (shape: (typeof used)[number], packed: boolean) => () =>
    addon().bench.gemm({ ...timing, ...shape, dtype: nativeType(dtype), packed });
  return used.map((shape) => ({
    op: 'linear',
    shape: `${shape.m}×${shape.k}→${shape.n}`,
    dtype,
    operations: 2 * shape.m * shape.n * shape.k,
    time: time(shape, true),
    others: { packing_each_time: time(shape, false) },
  }));
}

const tokens = 1024;

/** The other operators of the decoder, on 1,024 tokens of the 135M shape (attention: one sequence of them). */
function decoderCases(dtype: Dtype, timing: NativeTiming): Case[] {
  const e = dtype === 'bf16' ? 2 : 4;
  const hidden = tokens * 576;
  const inner = tokens * 1536;
  const square = (2 * 9 * 64 * tokens * tokens) / 2;
  const head = 2 * hidden * 49152;
  const list: [name: string, width: number, operations: number, bytes?: number][] = [
    ['rmsnorm', 576, 4 * hidden, hidden * (4 + e)],
    ['rmsnorm backward', 576, 8 * hidden, hidden * 12],
    ['swiglu', 1536, 8 * inner, inner * 3 * e],
    ['swiglu backward', 1536, 16 * inner, inner * (2 * e + 12)],
    ['attention', 960, 2 * square],
    ['attention backward', 960, 5 * square],
    ['head', 576, head],
    ['head backward', 576, 2 * head],
    ['adamw', 1536, 12 * inner, inner * 28],
  ];
  return list
    .filter(([name]) => dtype === 'float32' || name !== 'adamw')
    .map(([name, width, operations, bytes]) => ({
      op: name,
      shape: `${tokens}×${width}`,
      dtype,
      operations,
      bytes,
      time: () => addon().bench.operator({ ...timing, name, rows: tokens, width, dtype: nativeType(dtype) }),
    }));
}

export const popularities = ['identical', 'distinct', 'uniform', 'skewed'] as const;

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

/** Widths and ranks of the grouped products. */
export const loraShapes = [
  [576, 8],
  [576, 16],
  [576, 64],
  [2048, 16],
  [4096, 16],
] as const;

function loraCases(dtype: Dtype, timing: NativeTiming): Case[] {
  const requests = 64;
  const cases: Case[] = [];
  for (const [width, r] of loraShapes)
    for (const rowsEach of [1, 16, 64])
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
          const time = (method: 'grouped' | 'loop' | 'gather') => () =>
            addon().bench.groupedLora({
              ...timing,
              runs: Math.min(timing.runs, 2),
              cold: true,
              in: width,
              out: width,
              r,
              adapterCount: counts.length,
              segments,
              adapters: Int32Array.from(counts, (_, i) => i),
              dtype: nativeType(dtype),
              backward,
              method,
              rowsEach,
            });
          cases.push({
            op: `grouped-lora ${backward ? 'backward' : 'forward'}`,
            shape: `${row}×${width}→${width} r${r} ${popularity} (${counts.length})`,
            dtype,
            operations: (backward ? 4 : 2) * 2 * row * r * width,
            time: time('grouped'),
            others: { loop: time('loop'), gather: time('gather') },
          });
        }
  return cases;
}

const giga = (rate: number) => digits(rate / 1e9);

/**
 * Linear layers with a frozen weight (prepared once, beside packing it in every call), the other operators of the decoder,
 * and grouped low-rank products (64 requests; caches overwritten before every call) beside dense products segment by
 * segment and beside products on gathered copies; random data, medians of several runs. `peak_share` is against the
 * multiply-adds of that type that the same instruction set and threads do in registers, or, where `gb_s` is given, against
 * what they read from memory; both measured before and after, the higher counts. One thread is timed by the processor time
 * it takes.
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
  const peak = async (dtype: Dtype) =>
    median(await addon().bench.peak({ ...timing, seconds: quick ? 0.005 : 0.05, dtype: nativeType(dtype) }));
  const readBytes = quick ? 1 << 22 : 1 << 28;
  const read = async () =>
    readBytes /
    median(
      await addon().bench.operator({ ...timing, name: 'read', rows: readBytes / 16384, width: 4096, dtype: 'float32' }),
    );
  const limits = async () => ({ float32: await peak('float32'), bf16: await peak('bf16'), read: await read() });
  const before = await limits();
  const types = dtypes(options.dtype);
  // Grouped products run in float32 whatever the activations are; one type of input says enough.
  const cases = [
    ...types.flatMap((dtype) => [...gemmCases(dtype, timing), ...decoderCases(dtype, timing)]),
    ...loraCases(types[0], timing),
  ];
  // A plain reference would take minutes over the largest.
  const feasible = cases.filter(({ operations }) => operations <= (quick ? 1e7 : before.float32 * 0.5));
  const rest = cases.length - feasible.length;
  if (rest > 0 && !quick)
    process.stderr.write(`bench: ${rest} shapes left out, too large for ${isa} at ${giga(before.float32)} GFLOP/s\n`);
  const rates: { limit: keyof typeof before; rate: number }[] = [];
  const timed = await runCases('bench ops', feasible, stop, async (one, done) => {
    const { op, shape, dtype, operations, bytes } = one;
    const others = Object.entries(one.others ?? {});
    // Alternating, so that what else the machine does falls on all of them.
    const seconds: number[][] = [[], ...others.map(() => [])];
    for (let round = 0; round < (quick || others.length === 0 ? 1 : 3); round++)
      for (const [i, time] of [one.time, ...others.map(([, time]) => time)].entries())
        seconds[i].push(...(await time()));
    const ours = median(seconds[0]);
    rates.push(
      bytes
        ? { limit: 'read', rate: bytes / ours }
        : { limit: op.startsWith('grouped') ? 'float32' : dtype, rate: operations / ours },
    );
    const record: BenchRecord = { op, shape, dtype, threads, isa, gflops: giga(operations / ours) };
    if (bytes) record.gb_s = giga(bytes / ours);
    Object.assign(record, { peak_share: 0, ms: digits(ours * 1e3) });
    for (const [i, [name]] of others.entries()) record[`${name}_ms`] = digits(median(seconds[i + 1]) * 1e3);
    done(record);
  });
  // Stopped here, what was timed is still there.
  const after = await limits().catch((error: unknown) => {
    if (!isAborted(error)) throw error;
    return before;
  });
  if (Math.max(before.float32, after.float32) > 1.2 * Math.min(before.float32, after.float32) && !quick)
    process.stderr.write(
      `bench: the peak was ${giga(before.float32)} GFLOP/s before and ${giga(after.float32)} after: something else keeps the processor busy, and the times are too long\n`,
    );
  timed.forEach((record, i) => {
    const { limit, rate } = rates[i];
    record.peak_share = digits(rate / Math.max(before[limit], after[limit]), 3);
  });
  const first = { op: 'multiply-add', shape: 'registers', threads, isa, peak_share: 1 };
  return [
    ...(['float32', 'bf16'] as const).map((dtype) => ({
      ...first,
      dtype,
      gflops: giga(Math.max(before[dtype], after[dtype])),
    })),
    {
      ...first,
      op: 'read',
      shape: `${readBytes} bytes`,
      dtype: 'float32',
      gb_s: giga(Math.max(before.read, after.read)),
    },
    ...timed,
  ];
}
