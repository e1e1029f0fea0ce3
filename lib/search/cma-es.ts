import { Random } from '../base/random.js';
import { PluralignError } from '../native/errors.js';

export interface CmaEsOptions {
  /** Where the search starts, and how far around it looks at first. */
  start: readonly number[];
  deviation: number;
  /** Candidates of a generation; default 4 + ⌊3 ln n⌋. */
  population?: number;
  seed: number;
}

/**
 * Covariance matrix adaptation (Hansen & Ostermeier 2001; as in Hansen's tutorial, arXiv 1604.00772, with weights of the
 * better half alone): candidates are drawn from N(mean, σ² C), told their values, and mean, C and σ move towards what was
 * best. For a few unknowns and noisy values; one seed and one list of values give one search.
 */
export class CmaEs {
  readonly population: number;
  mean: number[];
  sigma: number;
  /** C, its eigenvectors in columns, and the roots of its eigenvalues. */
  #c: number[][];
  #b: number[][];
  #d: number[];
  #pathC: number[];
  #pathSigma: number[];
  #generation = 0;
  #asked: { x: number[]; y: number[] }[] = [];
  readonly #random: Random;
  readonly #weights: number[];
  readonly #rates: { mu: number; c: number; s: number; one: number; mean: number; damping: number; chi: number };

  constructor({ start, deviation, population, seed }: CmaEsOptions) {
    const n = start.length;
    if (n === 0 || !start.every(Number.isFinite) || !(deviation > 0))
      throw new PluralignError('BAD_ARGUMENT', 'CMA-ES: expected finite numbers to start from and a deviation above 0');
    this.population = population ?? 4 + Math.floor(3 * Math.log(n));
    if (!(this.population >= 4)) throw new PluralignError('BAD_ARGUMENT', 'CMA-ES: expected at least 4 candidates');
    this.#random = new Random(seed, 0xc3ae5);
    this.mean = [...start];
    this.sigma = deviation;
    const parents = Math.floor(this.population / 2);
    const raw = Array.from({ length: parents }, (_, i) => Math.log((this.population + 1) / 2) - Math.log(i + 1));
    const sum = raw.reduce((a, b) => a + b, 0);
    this.#weights = raw.map((w) => w / sum);
    const mu = 1 / this.#weights.reduce((a, w) => a + w * w, 0);
    const s = (mu + 2) / (n + mu + 5);
    const one = 2 / ((n + 1.3) ** 2 + mu);
    this.#rates = {
      mu,
      c: (4 + mu / n) / (n + 4 + (2 * mu) / n),
      s,
      one,
      mean: Math.min(1 - one, (2 * (mu - 2 + 1 / mu)) / ((n + 2) ** 2 + mu)),
      damping: 1 + 2 * Math.max(0, Math.sqrt((mu - 1) / (n + 1)) - 1) + s,
      // E‖N(0, I)‖
      chi: Math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n)),
    };
    this.#c = identity(n);
    this.#b = identity(n);
    this.#d = new Array(n).fill(1);
    this.#pathC = new Array(n).fill(0);
    this.#pathSigma = new Array(n).fill(0);
  }

  /** Candidates of the next generation, [population][n]. */
  ask(): number[][] {
    this.#asked = Array.from({ length: this.population }, () => {
      const z = this.#d.map((d) => d * this.#random.normal());
      const y = this.#b.map((row) => row.reduce((sum, b, k) => sum + b * z[k], 0));
      return { y, x: y.map((value, i) => this.mean[i] + this.sigma * value) };
    });
    return this.#asked.map(({ x }) => x);
  }

  /** What the candidates of `ask` were worth, in their order; the least is the best. NaN counts as the worst. */
  tell(values: readonly number[]): void {
    if (values.length !== this.#asked.length || values.length === 0)
      throw new PluralignError('BAD_ARGUMENT', `CMA-ES: found ${values.length} values, expected ${this.#asked.length}`);
    const n = this.mean.length;
    const { mu, c, s, one, mean, damping, chi } = this.#rates;
    const worth = values.map((v) => (Number.isNaN(v) ? Number.POSITIVE_INFINITY : v));
    const order = worth.map((_, i) => i).sort((a, b) => worth[a] - worth[b] || a - b);
    const best = this.#weights.map((_, i) => this.#asked[order[i]].y);
    const step = this.mean.map((_, i) => this.#weights.reduce((sum, w, k) => sum + w * best[k][i], 0));
    this.mean = this.mean.map((m, i) => m + this.sigma * step[i]);
    // C^(−1/2) step = B D⁻¹ Bᵀ step
    const turned = this.#d.map((d, k) => this.#b.reduce((sum, row, i) => sum + row[k] * step[i], 0) / d);
    const white = this.#b.map((row) => row.reduce((sum, b, k) => sum + b * turned[k], 0));
    this.#pathSigma = this.#pathSigma.map((p, i) => (1 - s) * p + Math.sqrt(s * (2 - s) * mu) * white[i]);
    const length = Math.hypot(...this.#pathSigma);
    this.#generation++;
    const usual = length / Math.sqrt(1 - (1 - s) ** (2 * this.#generation)) / chi < 1.4 + 2 / (n + 1);
    this.#pathC = this.#pathC.map((p, i) => (1 - c) * p + (usual ? Math.sqrt(c * (2 - c) * mu) * step[i] : 0));
    const kept = 1 - one - mean + (usual ? 0 : one * c * (2 - c));
    this.#c = this.#c.map((row, i) =>
      row.map(
        (value, j) =>
          kept * value +
          one * this.#pathC[i] * this.#pathC[j] +
          mean * this.#weights.reduce((sum, w, k) => sum + w * best[k][i] * best[k][j], 0),
      ),
    );
    this.sigma *= Math.exp((s / damping) * (length / chi - 1));
    const { values: eigen, vectors } = eigenOf(this.#c);
    this.#b = vectors;
    this.#d = eigen.map((value) => Math.sqrt(Math.max(value, 1e-20)));
    this.#asked = [];
  }
}

const identity = (n: number): number[][] =>
  Array.from({ length: n }, (_, i) => Array.from({ length: n }, (__, j) => (i === j ? 1 : 0)));

/** Eigenvalues and eigenvectors (in columns) of a symmetric matrix by cyclic Jacobi rotations. */
export function eigenOf(matrix: readonly (readonly number[])[]): { values: number[]; vectors: number[][] } {
  const n = matrix.length;
  const a = matrix.map((row) => [...row]);
  const v = identity(n);
  for (let sweep = 0; sweep < 60; sweep++) {
    let [off, on] = [0, 0];
    for (let i = 0; i < n; i++)
      for (let j = 0; j < n; j++) {
        if (i === j) on += a[i][j] ** 2;
        else off += a[i][j] ** 2;
      }
    if (off <= 1e-30 * on) break;
    for (let p = 0; p < n - 1; p++)
      for (let q = p + 1; q < n; q++) {
        if (a[p][q] === 0) continue;
        const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        const t = Math.sign(theta || 1) / (Math.abs(theta) + Math.hypot(theta, 1));
        const cos = 1 / Math.hypot(t, 1);
        const sin = t * cos;
        for (let k = 0; k < n; k++) [a[k][p], a[k][q]] = [cos * a[k][p] - sin * a[k][q], sin * a[k][p] + cos * a[k][q]];
        for (let k = 0; k < n; k++) [a[p][k], a[q][k]] = [cos * a[p][k] - sin * a[q][k], sin * a[p][k] + cos * a[q][k]];
        for (let k = 0; k < n; k++) [v[k][p], v[k][q]] = [cos * v[k][p] - sin * v[k][q], sin * v[k][p] + cos * v[k][q]];
      }
  }
  return { values: a.map((row, i) => row[i]), vectors: v };
}
