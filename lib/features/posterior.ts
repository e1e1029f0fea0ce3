import { Random } from '../base/random.js';
import { PluralignError } from '../native/errors.js';
import { sigmoid } from './likelihood.js';
import type { Features } from './models/index.js';
import type { Population } from './population.js';

/** Own numbers up to which a run keeps everyone's posterior: it takes own (own + 1) / 2 numbers a voter. */
export const posteriorSize = 64;

/** Lower triangle [k, k] row by row. */
export function packLower(factor: Float64Array, k: number, out: Float64Array): void {
  for (let i = 0, at = 0; i < k; i++) for (let j = 0; j <= i; j++) out[at++] = factor[i * k + j];
}

export function unpackLower(packed: Float64Array, k: number): Float64Array {
  const factor = new Float64Array(k * k);
  for (let i = 0, at = 0; i < k; i++) for (let j = 0; j <= i; j++) factor[i * k + j] = packed[at++];
  return factor;
}

/**
 * Laplace's approximation of what a voter's votes leave open: z ~ N(ẑ, H⁻¹), H the Hessian of minus the log-posterior at
 * its mode, everything shared taken as known. For a voter without votes it is the prior.
 */
export class Posterior {
  /** @param factor lower Cholesky factor of H, [k, k] */
  constructor(
    readonly factor: Float64Array,
    readonly k: number,
  ) {}

  /** √(δᵀ H⁻¹ δ): the standard deviation of δ·z. */
  sd(delta: ArrayLike<number>): number {
    const half = this.half(delta);
    return Math.sqrt(half.reduce((sum, x) => sum + x * x, 0));
  }

  /** L⁻¹ δ. */
  half(delta: ArrayLike<number>): Float64Array {
    const { factor, k } = this;
    const y = new Float64Array(k);
    for (let i = 0; i < k; i++) {
      let sum = delta[i];
      for (let p = 0; p < i; p++) sum -= factor[i * k + p] * y[p];
      y[i] = sum / factor[i * k + i];
    }
    return y;
  }

  /** After one more observation along δ of the given precision: H + precision · δ δᵀ. */
  with(delta: Float64Array, precision: number): Posterior {
    const { k } = this;
    const l = this.factor.slice();
    const x = delta.map((value) => value * Math.sqrt(precision));
    // Rank-one update of a Cholesky factor (Gill, Golub, Murray and Saunders 1974).
    for (let i = 0; i < k; i++) {
      const diagonal = l[i * k + i];
      const r = Math.hypot(diagonal, x[i]);
      const c = r / diagonal;
      const s = x[i] / diagonal;
      l[i * k + i] = r;
      for (let j = i + 1; j < k; j++) {
        l[j * k + i] = (l[j * k + i] + s * x[j]) / c;
        x[j] = c * x[j] - s * l[j * k + i];
      }
    }
    return new Posterior(l, k);
  }
}

// Abscissae and weights of Gauss–Hermite quadrature for N(0, 1), eleven points: exact for polynomials of degree 21.
const nodes = [0, 0.928868997381064, 1.87603502015485, 2.86512316064364, 3.93616660712998, 5.18800122437487];
const masses = [
  0.369408369408369, 0.242240299873971, 0.0661387460710572, 0.00672028523553727, 0.000195671930271228,
  8.1218497902149e-7,
];

const entropy = (p: number) => (p > 0 && p < 1 ? -p * Math.log(p) - (1 - p) * Math.log1p(-p) : 0);

/**
 * What the answer to a pair is expected to tell of the voter, in nats: the mutual information of the answer and z under
 * the posterior (Houlsby et al. 2011), the reward difference being N(mean, sd²).
 */
export function expectedInformation(mean: number, sd: number): number {
  let p = 0;
  let inner = 0;
  for (const [i, node] of nodes.entries()) {
    for (const side of i === 0 ? [0] : [-1, 1]) {
      const q = sigmoid(mean + side * node * sd);
      p += masses[i] * q;
      inner += masses[i] * entropy(q);
    }
  }
  return Math.max(0, entropy(p) - inner);
}

export interface Question {
  /** Two items by name. */
  items: [string, string];
  /** Nats that the answer is expected to tell. */
  information: number;
  /** Probability that the first is preferred. */
  probability: number;
}

/** Pairs looked at, at most. */
const mostCandidates = 20_000;

/**
 * The questions to ask a voter next: greedily the pair whose answer tells most, each taken as asked before the next is
 * chosen (its expected Fisher information at the mean is added to the posterior's precision).
 *
 * @param u index of the voter, or −1 for one who is new
 * @param candidates pairs of rows of the table; absent: all pairs, or as many at random as there is time for
 */
export function nextQuestions(
  population: Population,
  table: Features & { ids: readonly string[] },
  u: number,
  count: number,
  candidates?: [number, number][],
  seed = 0,
): Question[] {
  const { model } = population;
  const posterior = population.posterior(u);
  if (!posterior) {
    throw new PluralignError(
      'UNSUPPORTED',
      `features.model: ${model.name} with ${model.own} numbers of a voter keeps no posterior; questions need low-rank, heads or local of ${posteriorSize} numbers a voter or less`,
    );
  }
  const { base, points } = model.items(table, population.parameters.shared);
  const { k } = model;
  const z = population.coordinates(u);
  const pairs = candidates ?? somePairs(table.n, new Random(seed, 0x9e87));
  const deltas = pairs.map(([a, b]) =>
    Float64Array.from({ length: k }, (_, c) => points[a * k + c] - points[b * k + c]),
  );
  const means = pairs.map(([a, b], i) => deltas[i].reduce((sum, x, c) => sum + x * z[c], base[a] - base[b]));
  const open = new Set(pairs.keys());
  const out: Question[] = [];
  let belief = posterior;
  while (out.length < count && open.size > 0) {
    let best = -1;
    let most = -1;
    for (const i of open) {
      const information = expectedInformation(means[i], belief.sd(deltas[i]));
      if (information > most) [best, most] = [i, information];
    }
    const p = sigmoid(means[best]);
    const [a, b] = pairs[best];
    out.push({ items: [table.ids[a], table.ids[b]], information: most, probability: p });
    belief = belief.with(deltas[best], p * (1 - p));
    open.delete(best);
  }
  return out;
}

function somePairs(n: number, random: Random): [number, number][] {
  const pairs: [number, number][] = [];
  if ((n * (n - 1)) / 2 <= mostCandidates) {
    for (let a = 0; a < n; a++) for (let b = a + 1; b < n; b++) pairs.push([a, b]);
    return pairs;
  }
  while (pairs.length < mostCandidates) {
    const [a, b] = [random.below(n), random.below(n)];
    if (a !== b) pairs.push([a, b]);
  }
  return pairs;
}
