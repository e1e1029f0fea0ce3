import { isLarge, projectBackNative, projectNative } from './native.js';

/** Dense float64 products over row-major arrays, and the Cholesky factor; sizes are those of factors and coordinates. */

/** X [n, d] · V [d, k] → [n, k]. X may be float32. */
export function project(
  x: Float32Array | Float64Array,
  n: number,
  d: number,
  v: Float64Array,
  k: number,
  out = new Float64Array(n * k),
): Float64Array {
  if (x instanceof Float32Array && k > 0 && isLarge(n * d * k)) {
    projectNative(x, n, d, v, k, out);
    return out;
  }
  out.fill(0);
  for (let i = 0; i < n; i++) {
    const o = i * k;
    const row = i * d;
    for (let j = 0; j < d; j++) {
      const a = x[row + j];
      if (a === 0) continue;
      const w = j * k;
      for (let c = 0; c < k; c++) out[o + c] += a * v[w + c];
    }
  }
  return out;
}

/** Xᵀ [d, n] · G [n, k], added to `out` [d, k]. */
export function projectBack(
  x: Float32Array | Float64Array,
  n: number,
  d: number,
  g: Float64Array,
  k: number,
  out: Float64Array,
): void {
  if (x instanceof Float32Array && k > 0 && isLarge(n * d * k)) {
    projectBackNative(x, n, d, g, k, out);
    return;
  }
  for (let i = 0; i < n; i++) {
    const o = i * k;
    let any = false;
    for (let c = 0; c < k; c++) any ||= g[o + c] !== 0;
    if (!any) continue;
    const row = i * d;
    for (let j = 0; j < d; j++) {
      const a = x[row + j];
      if (a === 0) continue;
      const w = j * k;
      for (let c = 0; c < k; c++) out[w + c] += a * g[o + c];
    }
  }
}

export function dot(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Factors a symmetric positive definite matrix [k, k] in place into its lower Cholesky factor; false where it is not. */
export function cholesky(a: Float64Array, k: number): boolean {
  for (let j = 0; j < k; j++) {
    let diagonal = a[j * k + j];
    for (let p = 0; p < j; p++) diagonal -= a[j * k + p] * a[j * k + p];
    if (!(diagonal > 0)) return false;
    const root = Math.sqrt(diagonal);
    a[j * k + j] = root;
    for (let i = j + 1; i < k; i++) {
      let sum = a[i * k + j];
      for (let p = 0; p < j; p++) sum -= a[i * k + p] * a[j * k + p];
      a[i * k + j] = sum / root;
    }
  }
  return true;
}

/** Solves L Lᵀ x = b for the factor of `cholesky`, in place. */
export function choleskySolve(l: Float64Array, k: number, b: Float64Array): void {
  for (let i = 0; i < k; i++) {
    let sum = b[i];
    for (let p = 0; p < i; p++) sum -= l[i * k + p] * b[p];
    b[i] = sum / l[i * k + i];
  }
  for (let i = k - 1; i >= 0; i--) {
    let sum = b[i];
    for (let p = i + 1; p < k; p++) sum -= l[p * k + i] * b[p];
    b[i] = sum / l[i * k + i];
  }
}

/**
 * Makes the columns of V [d, k] orthonormal in place (modified Gram–Schmidt, twice) and returns R [k, k] with
 * V_before = V_after R. A column that lies in the span of those before it becomes zero.
 */
export function orthonormalise(v: Float64Array, d: number, k: number): Float64Array {
  const r = new Float64Array(k * k);
  for (let c = 0; c < k; c++) {
    let before = 0;
    for (let j = 0; j < d; j++) before += v[j * k + c] ** 2;
    for (let pass = 0; pass < 2; pass++) {
      for (let p = 0; p < c; p++) {
        let sum = 0;
        for (let j = 0; j < d; j++) sum += v[j * k + p] * v[j * k + c];
        for (let j = 0; j < d; j++) v[j * k + c] -= sum * v[j * k + p];
        r[p * k + c] += sum;
      }
    }
    let norm = 0;
    for (let j = 0; j < d; j++) norm += v[j * k + c] ** 2;
    norm = norm > 1e-24 * before ? Math.sqrt(norm) : 0;
    r[c * k + c] = norm;
    for (let j = 0; j < d; j++) v[j * k + c] = norm > 0 ? v[j * k + c] / norm : 0;
  }
  return r;
}
