import { PluralignError } from '../native/errors.js';
import type { NativeGroupedLora } from '../native/kernels.js';
import { addon } from '../native/loader.js';
import { apart, bad, entries, finite, floats, indices, launch, type RunOptions, whole } from './check.js';

/** Which rows belong to which adapter. Rows that no segment names belong to none: they are the base's. */
export interface RowSegments {
  /** Rows [start, end) of each segment, ascending and apart; empty ones are allowed, [segments × 2]. */
  segments: Int32Array;
  /** Adapter of each segment, or -1 for none, [segments]. Several segments may have the same. */
  adapters: Int32Array;
}

/**
 * The adapters of one linear layer [out, in] and the rows that go through it. Matrices are row-major. Ranks may differ. Two
 * adapters may have the same array as a factor.
 */
export interface GroupedLora extends RowSegments, RunOptions {
  in: number;
  out: number;
  /** Inputs, [rows × in]. */
  x: Float32Array;
  /** A of each adapter, [r × in]. */
  a: readonly Float32Array[];
  /** B of each adapter, [out × r]. */
  b: readonly Float32Array[];
  /** r × r matrix, or vector on the r coordinates, between A and B, for each adapter or null. */
  cores?: readonly (Float32Array | null)[];
  /** r of each adapter; default: elements of its A / in. */
  ranks?: ArrayLike<number>;
  /** Factor on each adapter's update: α/r, or α/√r for rsLoRA. */
  scales: ArrayLike<number>;
  /**
   * A x of every row, [rows × largest rank]. The forward pass writes it; given to the backward pass, it need not be
   * computed again.
   */
  h?: Float32Array;
}

export interface GroupedLoraForward extends GroupedLora {
  /** Outputs, [rows × out]; added to. Starts as the base layer's output, or as zeros. */
  y: Float32Array;
}

/**
 * Gradients are added to, so that packs and adapters that share a factor add up: give such adapters the same array. What
 * is absent or null is not computed.
 */
export interface GroupedLoraBackward extends GroupedLora {
  /** Gradient of the outputs, [rows × out]. */
  dy: Float32Array;
  /** Gradient of the inputs, [rows × in]. */
  dx?: Float32Array;
  /** Gradient of each A, [r × in]. */
  da?: readonly (Float32Array | null)[];
  /** Gradient of each B, [out × r]. */
  db?: readonly (Float32Array | null)[];
  /** Gradient of each core, as large as the core. */
  dcores?: readonly (Float32Array | null)[];
}

/** Runs of equal adapters: `adapterOfRow` [rows] names each row's adapter, -1 for none. */
export function rowSegments(adapterOfRow: ArrayLike<number>): RowSegments {
  const segments: number[] = [];
  const adapters: number[] = [];
  for (let start = 0, end = 0; start < adapterOfRow.length; start = end) {
    while (end < adapterOfRow.length && adapterOfRow[end] === adapterOfRow[start]) end++;
    if (adapterOfRow[start] === -1) continue;
    segments.push(start, end);
    adapters.push(adapterOfRow[start]);
  }
  return { segments: Int32Array.from(segments), adapters: Int32Array.from(adapters) };
}

function checkSegments(call: GroupedLora, rows: number, count: number): void {
  const segments = indices('segments', call.segments);
  const adapters = indices('adapters', call.adapters);
  if (segments.length !== 2 * adapters.length)
    throw new PluralignError(
      'BAD_SHAPE',
      `segments has ${segments.length} elements; expected ${2 * adapters.length} (a start and an end for each of adapters)`,
    );
  let before = 0;
  adapters.forEach((adapter, s) => {
    const [start, end] = [segments[2 * s], segments[2 * s + 1]];
    if (start < before || end < start || end > rows)
      throw new PluralignError(
        'BAD_SHAPE',
        `segment ${s} is rows [${start}, ${end}); expected start ≤ end, from row ${before} (where the last one ended) up to row ${rows}`,
      );
    if (adapter < -1 || adapter >= count) bad(`adapters[${s}] is ${adapter}; there are ${count} adapters (-1: none)`);
    before = end;
  });
}

/** Checks all that both directions have, and lists it as the addon takes it. */
function prepare(call: GroupedLora): { native: Omit<NativeGroupedLora, 'threads'>; rows: number; ranks: number[] } {
  const width = whole('in', call.in, 1);
  const out = whole('out', call.out, 1);
  const x = floats('x', call.x);
  if (x.length % width !== 0)
    throw new PluralignError('BAD_SHAPE', `x has ${x.length} elements; expected rows × in, a multiple of ${width}`);
  const rows = x.length / width;
  const count = call.a?.length;
  const a = entries('a', call.a, count, 'each adapter').map((array, i) => floats(`a[${i}]`, array));
  const ranks = call.ranks ? entries('ranks', call.ranks, count, 'each of a') : a.map((array) => array.length / width);
  ranks.forEach((r, i) => {
    if (!call.ranks && (!Number.isInteger(r) || r < 1))
      throw new PluralignError(
        'BAD_SHAPE',
        `a[${i}] has ${a[i].length} elements; expected r × in, a multiple of ${width}`,
      );
    whole(`ranks[${i}]`, r, 1);
    floats(`a[${i}]`, a[i], r * width, `r ${r} × in ${width}`);
  });
  const b = entries('b', call.b, count, 'each of a').map((array, i) =>
    floats(`b[${i}]`, array, out * ranks[i], `out ${out} × r ${ranks[i]}`),
  );
  const cores = call.cores && entries('cores', call.cores, count, 'each of a');
  cores?.forEach((core, i) => {
    const r = ranks[i];
    if (core !== null && core.length !== r) floats(`cores[${i}]`, core, r * r, `r ${r} × r ${r}, or r as a vector`);
    if (core !== null) floats(`cores[${i}]`, core);
  });
  const scales = entries('scales', call.scales, count, 'each of a');
  scales.forEach((scale, i) => {
    finite(`scales[${i}]`, scale);
  });
  checkSegments(call, rows, count);
  const widest = Math.max(1, ...ranks);
  if (call.h) {
    floats('h', call.h, rows * widest, `${rows} rows × largest rank ${widest}`);
    apart(['h', call.h], [['x', x]]);
  }
  const { segments, adapters, h } = call;
  const native = {
    in: width,
    out,
    x,
    segments,
    adapters,
    a,
    b,
    cores,
    ranks: Int32Array.from(ranks),
    scales: Float64Array.from(scales),
    h,
  };
  return { native, rows, ranks };
}

function gradients(
  name: string,
  value: readonly (Float32Array | null)[] | undefined,
  expected: readonly (number | null)[],
  read: [string, Float32Array][],
): (Float32Array | null)[] | undefined {
  if (value === undefined) return undefined;
  const list = entries(name, value, expected.length, 'each adapter');
  list.forEach((array, i) => {
    if (array === null) return;
    const elements = expected[i];
    if (elements === null) bad(`${name}[${i}] is given, but adapter ${i} has no core`);
    floats(`${name}[${i}]`, array, elements, 'as many as what it is the gradient of');
    apart([`${name}[${i}]`, array], read);
  });
  return list;
}

/**
 * y_t += s B C A x_t for every row t of every segment, with the factors of the segment's adapter (C: its core, the
 * identity without one). LoRA, Hu et al. 2021, eq. 3; many adapters in one call as in Punica's SGMV, Chen et al. 2023,
 * section 4. Sums are in float32, in an order that depends on the row alone: a row's result does not change with the rows,
 * adapters or threads around it.
 *
 * Runs off the main thread; leave the arrays unchanged until the promise settles. Calls run one after another. Rejects
 * with `BAD_SHAPE` naming the array, what was found and what was expected; `BAD_ARGUMENT`; `ABORTED`.
 */
export async function groupedLoraForward(call: GroupedLoraForward): Promise<void> {
  const { native, rows } = prepare(call);
  const y = floats('y', call.y, rows * native.out, `${rows} rows × out ${native.out}`);
  apart(['y', y], [['x', native.x], ...(call.h ? ([['h', call.h]] as [string, Float32Array][]) : [])]);
  await launch(call, (threads, abort) => addon().kernels.groupedLoraForward({ ...native, y, threads, abort }));
}

/**
 * Gradients of {@link groupedLoraForward}. With h = A x, u = C h and per row g = s Bᵀ dy:
 * dB += s Σ dy uᵀ, dC += Σ g hᵀ (the diagonal for a vector), dA += Σ Cᵀg xᵀ over the adapter's rows, dx_t += Aᵀ Cᵀ g_t.
 * Hu et al. 2021; the order of sums, arrays and errors are those of the forward pass.
 */
export async function groupedLoraBackward(call: GroupedLoraBackward): Promise<void> {
  const { native, rows, ranks } = prepare(call);
  const dy = floats('dy', call.dy, rows * native.out, `${rows} rows × out ${native.out}`);
  const read: [string, Float32Array][] = [
    ['x', native.x],
    ['dy', dy],
  ];
  const { dx } = call;
  if (dx) {
    floats('dx', dx, rows * native.in, `${rows} rows × in ${native.in}`);
    apart(['dx', dx], read);
  }
  const sizes = (width: number) => ranks.map((r) => r * width);
  const da = gradients('da', call.da, sizes(native.in), read);
  const db = gradients('db', call.db, sizes(native.out), read);
  const cores = ranks.map((_, i) => native.cores?.[i]?.length ?? null);
  const dcores = gradients('dcores', call.dcores, cores, read);
  await launch(call, (threads, abort) =>
    addon().kernels.groupedLoraBackward({ ...native, dy, dx, da, db, dcores, threads, abort }),
  );
}
