import { Random } from '../../base/random.js';
import { PluralignError } from '../../native/errors.js';
import { progress } from '../../training/progress.js';
import { type BilinearGradient, bilinearLoss } from '../bilinear.js';
import { lbfgsInTurns } from '../lbfgs.js';
import { orthonormalise, project, projectBack } from '../linalg.js';
import { isLarge, newtonNative } from '../native.js';
import { fitLinear } from '../newton.js';
import { fitRidgeInTurns } from '../ridge.js';
import { type Votes, votesByAnnotator } from '../votes.js';
import { LowRankBatches } from './batches.js';
import {
  type BatchOptions,
  type FeatureModelOptions,
  type FeatureRewardModel,
  type Features,
  type Fitted,
  sharedPrecision,
} from './model.js';

/**
 * P-ShareLoRA's linear case: w_u = w_0 + V z_u, V [d, k] shared with orthonormal columns, z_u the annotator's own, so
 * that the stack of all updates has rank k (Liu et al. 2025, ΔΘ = B [W_1 … W_N]). The prior N(0, 1/l2) on z_u is that
 * of one reward for each on w_u − w_0, kept to the shared subspace.
 *
 * Fitted by variable projection: for a given (V, w_0) every z_u is a convex problem of k unknowns, solved by Newton;
 * L-BFGS moves (V, w_0) along the gradient of what remains, from the subspace in which the annotators' gradients at the
 * reward for all differ most.
 */
export function lowRankModel(d: number, rank: number): FeatureRewardModel {
  const k = Math.min(rank, d);
  const split = (shared: Float64Array) => ({ v: shared.subarray(0, d * k), mean: shared.subarray(d * k) });
  return {
    name: 'low-rank',
    d,
    layout: [
      { name: 'factor', shape: [d, k] },
      { name: 'mean', shape: [d] },
    ],
    own: k,
    k,
    convex: true,
    items(table, shared) {
      const { v, mean } = split(shared);
      return { base: project(table.features, table.n, d, mean, 1), points: project(table.features, table.n, d, v, k) };
    },
    itemsBack(table, _shared, _side, gradient, out) {
      const { v, mean } = split(out);
      projectBack(table.features, table.n, d, gradient.base, 1, mean);
      projectBack(table.features, table.n, d, gradient.points, k, v);
    },
    user: (_shared, own, out) => out.set(own),
    userBack(_shared, _own, gradient, _outShared, outOwn) {
      for (let c = 0; c < k; c++) outOwn[c] += gradient[c];
    },
    weights(shared, c) {
      const { v, mean } = split(shared);
      const w = project(v, d, k, c, 1);
      for (let j = 0; j < d; j++) w[j] += mean[j];
      return w;
    },
    async fit(table, votes, options) {
      const fit = new SubspaceFit(table, votes, k, options);
      return options.batch ? batchFit(fit, options.batch) : fit.run();
    },
  };
}

/**
 * Mini-batches, their rate falling along half a cosine, in place of L-BFGS; then everyone's coordinates exactly for what
 * all share. One evaluation of the objective at the end says how good that is.
 */
async function batchFit(fit: SubspaceFit, batch: BatchOptions): Promise<Fitted> {
  const { table, votes, k, options } = fit;
  const start = fit.start(new Float64Array(table.d), 4);
  const batches = new LowRankBatches(table, votes, k, { ...options, ...batch }, start);
  const bar = progress(batch.epochs, 'epochs');
  try {
    for (let epoch = 0; epoch < batch.epochs; epoch++) {
      batches.epoch(batch.learningRate * 0.5 * (1 + Math.cos((Math.PI * epoch) / batch.epochs)), options.signal);
      bar.update(epoch + 1);
      await new Promise((resolve) => setImmediate(resolve));
    }
  } finally {
    bar.stop();
  }
  const { factor, mean } = batches.parts();
  const x = new Float64Array(factor.length + mean.length);
  x.set(factor);
  x.set(mean, factor.length);
  const objective = fit.objective(x, new Float64Array(x.length));
  x.set(fit.q);
  return { parameters: { shared: x, own: fit.z.slice() }, report: { objective, steps: batch.epochs, converged: true } };
}

/** The profile objective F(V, w_0) = min_Z over everyone's coordinates, and its gradient. */
export class SubspaceFit {
  readonly #by;
  readonly #count: number;
  /** Coordinates [N, k] in the basis `q`, from which the next fit of them starts. */
  z: Float64Array;
  q: Float64Array;
  readonly #l2: number;

  constructor(
    readonly table: Features,
    readonly votes: Votes,
    readonly k: number,
    readonly options: FeatureModelOptions,
  ) {
    this.#by = votesByAnnotator(votes);
    this.#count = votes.annotators.length;
    this.z = new Float64Array(this.#count * k);
    this.q = new Float64Array(table.d * k);
    this.#l2 = Math.max(options.l2, 1e-6);
  }

  async run(): Promise<Fitted> {
    const { table, votes, k, options } = this;
    const { d } = table;
    const prior = { l2: sharedPrecision(this.#l2), signal: options.signal };
    const { w: mean } = await fitRidgeInTurns(table, votes, prior);
    const x = new Float64Array(d * k + d);
    x.set(this.start(mean));
    x.set(mean, d * k);
    const { value, steps, converged } = await lbfgsInTurns((at, gradient) => this.objective(at, gradient), x, {
      maxSteps: 500,
      tolerance: 1e-5,
      relative: 1e-9,
      signal: options.signal,
    });
    this.objective(x, new Float64Array(x.length));
    const shared = new Float64Array(d * k + d);
    shared.set(this.q);
    shared.set(x.subarray(d * k), d * k);
    return {
      parameters: { shared, own: this.z.slice() },
      report: { objective: value, steps, converged },
    };
  }

  /** Subspace iteration on Σ_u g_u g_uᵀ, g_u [d] the gradient of u's votes at the reward for all; [d, k]. */
  start(mean: Float64Array, rounds = 12): Float64Array {
    const { table, votes, k, options } = this;
    const { d, n } = table;
    const random = new Random(options.seed, 0x5eed);
    const v = Float64Array.from({ length: d * k }, () => random.normal());
    orthonormalise(v, d, k);
    const base = project(table.features, n, d, mean, 1);
    // With coordinates 0 the loss sees the base alone: the gradient of c_u is V g_u.
    const zeros = new Float64Array(this.#count * k);
    for (let round = 0; round < rounds; round++) {
      const points = project(table.features, n, d, v, k);
      const g = this.#gradient();
      bilinearLoss(votes, { base, points }, zeros, k, g);
      const coordinates = g.users;
      const back = this.#gradient();
      bilinearAt(votes, base, coordinates, k, back);
      const next = new Float64Array(d * k);
      projectBack(table.features, n, d, back.points, k, next);
      for (let i = 0; i < v.length; i++) v[i] = next[i] + 1e-12 * random.normal();
      orthonormalise(v, d, k);
    }
    return v;
  }

  /** F at x = [V | w_0], and its gradient: by the envelope theorem that at fixed best coordinates. */
  objective(x: Float64Array, gradient: Float64Array): number {
    const { table, votes, k } = this;
    const { d, n } = table;
    const l2 = this.#l2;
    const q = x.slice(0, d * k);
    const r = orthonormalise(q, d, k);
    const mean = x.subarray(d * k);
    const base = project(table.features, n, d, mean, 1);
    const points = project(table.features, n, d, q, k);
    this.#solve(q, base, points);
    const g = this.#gradient();
    let value = bilinearLoss(votes, { base, points }, this.z, k, g);
    gradient.fill(0);
    const gv = gradient.subarray(0, d * k);
    const gm = gradient.subarray(d * k);
    projectBack(table.features, n, d, g.points, k, gv);
    projectBack(table.features, n, d, g.base, 1, gm);
    for (let j = 0; j < d; j++) {
      value += 0.5 * sharedPrecision(l2) * mean[j] * mean[j];
      gm[j] += sharedPrecision(l2) * mean[j];
    }
    // Prior on V z: l2 Q Σ z zᵀ; then from Q to V = Q R by R⁻ᵀ on the right.
    const moment = new Float64Array(k * k);
    for (let u = 0; u < this.#count; u++) {
      for (let a = 0; a < k; a++) {
        value += 0.5 * l2 * this.z[u * k + a] ** 2;
        for (let b = 0; b < k; b++) moment[a * k + b] += this.z[u * k + a] * this.z[u * k + b];
      }
    }
    const row = new Float64Array(k);
    for (let j = 0; j < d; j++) {
      for (let b = 0; b < k; b++) {
        row[b] = gv[j * k + b];
        for (let a = 0; a < k; a++) row[b] += l2 * q[j * k + a] * moment[a * k + b];
      }
      for (let a = k - 1; a >= 0; a--) {
        for (let b = a + 1; b < k; b++) row[a] -= r[a * k + b] * row[b];
        row[a] = r[a * k + a] > 0 ? row[a] / r[a * k + a] : 0;
      }
      gv.set(row, j * k);
    }
    return value;
  }

  /** Everyone's coordinates in the basis q, from those in the last basis. */
  #solve(q: Float64Array, base: Float64Array, points: Float64Array): void {
    const { k, votes, options } = this;
    if (options.signal?.aborted) throw new PluralignError('ABORTED', 'stopped on request');
    const { d } = this.table;
    const turn = new Float64Array(k * k);
    projectBack(q, d, k, this.q, k, turn);
    const start = new Float64Array(k);
    if (isLarge(votes.items.length * k * k)) {
      for (let u = 0; u < this.#count; u++) {
        const z = this.z.subarray(u * k, (u + 1) * k);
        z.set(project(turn, k, k, z, 1, start));
      }
      newtonNative(votes, { base, points }, this.z, k, this.#l2, 1e-14);
      this.q = q;
      return;
    }
    for (let u = 0; u < this.#count; u++) {
      const which = this.#by.votes.subarray(this.#by.offsets[u], this.#by.offsets[u + 1]);
      const z = this.z.subarray(u * k, (u + 1) * k);
      if (which.length === 0) {
        z.fill(0);
        continue;
      }
      project(turn, k, k, z, 1, start);
      z.set(fitLinear({ votes, which, points, k, base, l2: this.#l2 }, start, 1e-14).z);
    }
    this.q = q;
  }

  #gradient(): BilinearGradient {
    return {
      base: new Float64Array(this.table.n),
      points: new Float64Array(this.table.n * this.k),
      users: new Float64Array(this.#count * this.k),
    };
  }
}

/** Gradient at the points for given coordinates, with the votes' slopes taken at the base alone. */
function bilinearAt(
  votes: Votes,
  base: Float64Array,
  coordinates: Float64Array,
  k: number,
  out: BilinearGradient,
): void {
  bilinearLoss(votes, { base, points: new Float64Array(out.points.length) }, coordinates, k, out);
}
