// Merging as its formulas say, on dense float64 matrices: what lib/merge must agree with. No factors, no streaming.
import { createHash } from 'node:crypto';

export interface Dense {
  rows: number;
  cols: number;
  /** Row-major. */
  x: Float64Array;
}

export interface Settings {
  density: number;
  epsilon: number;
  gamma: number;
  lambda: number;
  seed: number;
}

const mapped = (m: Dense, f: (value: number, index: number) => number): Dense => ({ ...m, x: m.x.map(f) });
const dot = (a: Dense, b: Dense) => a.x.reduce((sum, value, i) => sum + value * b.x[i], 0);
export const norm = (m: Dense) => Math.sqrt(dot(m, m));

export function combination(taus: Dense[], weights: number[]): Dense {
  return mapped(taus[0], (_, i) => taus.reduce((sum, tau, e) => sum + weights[e] * tau.x[i], 0));
}

/** scale · B A */
export function update(b: Float32Array, a: Float32Array, rows: number, cols: number, r: number, scale: number): Dense {
  const x = new Float64Array(rows * cols);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < cols; j++) {
      let sum = 0;
      for (let k = 0; k < r; k++) sum += b[i * r + k] * a[k * cols + j];
      x[i * cols + j] = scale * sum;
    }
  return { rows, cols, x };
}

/** splitmix64 at (key, index), in [0, 1). */
function uniform(key: bigint, index: number): number {
  const mask = (1n << 64n) - 1n;
  let x = (key + BigInt(index + 1) * 0x9e3779b97f4a7c15n) & mask;
  x = ((x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n) & mask;
  x = ((x ^ (x >> 27n)) * 0x94d049bb133111ebn) & mask;
  return Number((x ^ (x >> 31n)) >> 11n) / 2 ** 53;
}

function keyOf(seed: number, expert: number, tensor: string): bigint {
  const hash = createHash('sha256').update(`${seed} ${expert} ${tensor}`).digest();
  return (BigInt(hash.readUInt32LE(0)) << 32n) | BigInt(hash.readUInt32LE(4));
}

/** Indices by |x|, largest first. */
const byMagnitude = (x: ArrayLike<number>) =>
  Array.from(x, (_, i) => i).sort((a, b) => Math.abs(x[b]) - Math.abs(x[a]) || a - b);

const keepOnly = (m: Dense, kept: number[]) => {
  const set = new Set(kept);
  return mapped(m, (value, i) => (set.has(i) ? value : 0));
};

export const keeps: Record<string, (tau: Dense, s: Settings, key: bigint) => Dense> = {
  all: (tau) => tau,
  magnitude: (tau, { density }) => keepOnly(tau, byMagnitude(tau.x).slice(0, Math.floor(density * tau.x.length))),
  random: (tau, { density }, key) => mapped(tau, (value, i) => (uniform(key, i) < density ? value / density : 0)),
  breadcrumbs: (tau, { density, gamma }) => {
    const top = Math.floor(gamma * tau.x.length);
    return keepOnly(tau, byMagnitude(tau.x).slice(top, top + Math.floor(density * tau.x.length)));
  },
  ranked: (tau, { density, epsilon }, key) => {
    const out = mapped(tau, () => 0);
    for (let r = 0; r < tau.rows; r++) {
      const row = tau.x.subarray(r * tau.cols, (r + 1) * tau.cols);
      byMagnitude(row)
        .reverse()
        .forEach((j, rank) => {
          const p = density - epsilon / 2 + (epsilon * rank) / (tau.cols - 1);
          if (uniform(key, r * tau.cols + j) < p) out.x[r * tau.cols + j] = row[j] / p;
        });
    }
    return out;
  },
};

const share = (weights: number[]) => {
  const total = weights.reduce((sum, w) => sum + w, 0);
  return weights.map((w) => w / total);
};

function slerp([a, b]: Dense[], weights: number[]): Dense {
  const t = share(weights)[1];
  const cosine = dot(a, b) / (norm(a) * norm(b));
  if (Math.abs(cosine) > 0.9995) return combination([a, b], [1 - t, t]);
  const angle = Math.acos(cosine);
  return combination([a, b], [Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle)]);
}

const rowOf = (m: Dense, r: number): Dense => ({ rows: 1, cols: m.cols, x: m.x.slice(r * m.cols, (r + 1) * m.cols) });

export const combines: Record<string, (taus: Dense[], weights: number[]) => Dense> = {
  sum: combination,
  average: (taus, weights) => combination(taus, share(weights)),
  elect: (taus, weights) =>
    mapped(taus[0], (_, i) => {
      const parts = taus.map((tau, e) => ({ value: weights[e] * tau.x[i], weight: Math.abs(weights[e]) }));
      const sign = Math.sign(parts.reduce((sum, p) => sum + p.value, 0));
      const agreeing = parts.filter((p) => sign !== 0 && Math.sign(p.value) === sign);
      if (agreeing.length === 0) return 0;
      return agreeing.reduce((sum, p) => sum + p.value, 0) / agreeing.reduce((sum, p) => sum + p.weight, 0);
    }),
  slerp,
  nuslerp: (taus, weights) => {
    const out = mapped(taus[0], () => 0);
    for (let r = 0; r < out.rows; r++) {
      const rows = taus.map((tau) => rowOf(tau, r));
      out.x.set(slerp(rows, weights).x, r * out.cols);
    }
    return out;
  },
  multislerp: (taus, weights) => {
    const w = share(weights);
    const scaled = (m: Dense, factor: number) => mapped(m, (value) => value * factor);
    const units = taus.map((tau) => scaled(tau, 1 / norm(tau)));
    const mean = combination(units, w);
    const m = scaled(mean, 1 / norm(mean));
    if (units.every((u) => dot(u, m) > 0.9995)) return combination(taus, w);
    const logs = units.map((u) => {
      const cosine = dot(u, m);
      const away = combination([u, m], [1, -cosine]);
      return scaled(away, Math.acos(cosine) / norm(away));
    });
    const v = combination(logs, w);
    const size = norm(v);
    const direction = combination([m, v], [Math.cos(size), size > 1e-15 ? Math.sin(size) / size : 1]);
    const length = taus.reduce((sum, tau, e) => sum + w[e] * norm(tau), 0);
    return scaled(direction, length);
  },
  stock: (taus) => {
    const n = taus.length;
    let cosine = 0;
    for (let i = 0; i < n; i++)
      for (let j = 0; j < i; j++)
        cosine += dot(taus[i], taus[j]) / (norm(taus[i]) * norm(taus[j])) / ((n * (n - 1)) / 2);
    const t = Math.max(-1, (n * cosine) / (1 + (n - 1) * cosine));
    return combination(
      taus,
      taus.map(() => t / n),
    );
  },
};

/** Method → which elements stay, and how they are combined. */
export const formulas: Record<string, [keyof typeof keeps, keyof typeof combines]> = {
  cat: ['all', 'sum'],
  svd: ['all', 'sum'],
  linear: ['all', 'average'],
  task_arithmetic: ['all', 'sum'],
  ties: ['magnitude', 'elect'],
  ties_svd: ['magnitude', 'elect'],
  dare_linear: ['random', 'sum'],
  dare_linear_svd: ['random', 'sum'],
  dare_ties: ['random', 'elect'],
  dare_ties_svd: ['random', 'elect'],
  magnitude_prune: ['magnitude', 'sum'],
  magnitude_prune_svd: ['magnitude', 'sum'],
  della: ['ranked', 'elect'],
  della_linear: ['ranked', 'sum'],
  breadcrumbs: ['breadcrumbs', 'sum'],
  breadcrumbs_ties: ['breadcrumbs', 'elect'],
  slerp: ['all', 'slerp'],
  nuslerp: ['all', 'nuslerp'],
  multi_slerp: ['all', 'multislerp'],
  model_stock: ['all', 'stock'],
};

/** The merged update of one tensor. */
export function reference(method: string, taus: Dense[], weights: number[], s: Settings, tensor: string): Dense {
  const [keep, combine] = formulas[method];
  const kept = taus.map((tau, e) => keeps[keep](tau, s, keyOf(s.seed, e, tensor)));
  return mapped(combines[combine](kept, weights), (value) => s.lambda * value);
}

/** ‖a − b‖ / ‖b‖, Frobenius. */
export function distance(a: Dense, b: Dense): number {
  return norm(combination([a, b], [1, -1])) / norm(b);
}
