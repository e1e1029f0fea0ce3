import { expect } from 'vitest';
import type { GroupedLora } from '../lib/kernels.js';
import { random } from './losses-helpers.js';

export function floats(n: number, seed: number): Float32Array {
  const u = random(seed);
  return Float32Array.from({ length: n }, () => 2 * u() - 1);
}

/** Relative to the largest element; one assertion however long the arrays are. */
export function close(actual: ArrayLike<number>, expected: ArrayLike<number>, tolerance = 1e-5): void {
  expect(actual.length).toBe(expected.length);
  let scale = 1e-2;
  let worst = 0;
  let at = 0;
  for (let i = 0; i < expected.length; i++) {
    scale = Math.max(scale, Math.abs(expected[i]));
    const error = Math.abs(actual[i] - expected[i]);
    if (!(error <= worst)) [worst, at] = [error, i];
    if (Number.isNaN(error)) break;
  }
  expect(worst / scale, `element ${at}: ${actual[at]} against ${expected[at]}`).toBeLessThan(tolerance);
}

type Arrays = (Float64Array | null)[];

/** Plain float64 loops over the definition: y += s B C A x, and its gradients given dy. */
export function reference(call: GroupedLora, y: ArrayLike<number>, dy: ArrayLike<number>) {
  const { in: width, out, x, segments, adapters, a, b, cores, scales } = call;
  const ranks = a.map((array) => array.length / width);
  const result = {
    y: Float64Array.from(y),
    dx: new Float64Array(x.length),
    da: a.map((array) => new Float64Array(array.length)),
    db: b.map((array) => new Float64Array(array.length)),
    dcores: a.map((_, i) => (cores?.[i] ? new Float64Array(cores[i].length) : null)) as Arrays,
  };
  adapters.forEach((k, segment) => {
    if (k === -1) return;
    const [r, s, core] = [ranks[k], scales[k], cores?.[k] ?? null];
    const c = (i: number, j: number): number =>
      core === null ? Number(i === j) : core.length === r * r ? core[i * r + j] : i === j ? core[i] : 0;
    for (let t = segments[2 * segment]; t < segments[2 * segment + 1]; t++) {
      const h = new Float64Array(r);
      const u = new Float64Array(r);
      const g = new Float64Array(r);
      const dh = new Float64Array(r);
      for (let i = 0; i < r; i++) for (let j = 0; j < width; j++) h[i] += a[k][i * width + j] * x[t * width + j];
      for (let i = 0; i < r; i++) for (let j = 0; j < r; j++) u[i] += c(i, j) * h[j];
      for (let o = 0; o < out; o++)
        for (let i = 0; i < r; i++) {
          result.y[t * out + o] += s * b[k][o * r + i] * u[i];
          g[i] += s * b[k][o * r + i] * dy[t * out + o];
          result.db[k][o * r + i] += s * dy[t * out + o] * u[i];
        }
      for (let i = 0; i < r; i++)
        for (let j = 0; j < r; j++) {
          dh[j] += c(i, j) * g[i];
          const d = result.dcores[k];
          if (d && d.length === r * r) d[i * r + j] += g[i] * h[j];
          else if (d && i === j) d[i] += g[i] * h[i];
        }
      for (let i = 0; i < r; i++)
        for (let j = 0; j < width; j++) {
          result.da[k][i * width + j] += dh[i] * x[t * width + j];
          result.dx[t * width + j] += dh[i] * a[k][i * width + j];
        }
    }
  });
  return result;
}

export interface Shape {
  in: number;
  out: number;
  rows: number;
  ranks: number[];
  segments: number[];
  adapters: number[];
  /** For each adapter: none, a vector or a matrix. */
  cores?: ('none' | 'vector' | 'matrix')[];
}

export function makeCall(shape: Shape, seed = 1): GroupedLora {
  const { in: width, out, rows, ranks } = shape;
  return {
    in: width,
    out,
    x: floats(rows * width, seed),
    a: ranks.map((r, i) => floats(r * width, seed + 10 + i)),
    b: ranks.map((r, i) => floats(out * r, seed + 50 + i)),
    cores: shape.cores?.map((core, i) =>
      core === 'none' ? null : floats(core === 'vector' ? ranks[i] : ranks[i] ** 2, seed + 90 + i),
    ),
    scales: ranks.map((r) => 2 / r),
    segments: Int32Array.from(shape.segments),
    adapters: Int32Array.from(shape.adapters),
  };
}
