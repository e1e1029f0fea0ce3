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
 * With `columns` c > 1 an item's features are the columns of a matrix Φ [d / c, c], one after the other, and rewards are
 * ⟨Θ_0 + V Z_u, Φ⟩ with V [d / c, k] shared and Z_u [k, c] the annotator's own: the paper's update of a matrix.
 *
 * Fitted by variable projection: for a given (V, w_0) every z_u is a convex problem of k unknowns, solved by Newton;
 * L-BFGS moves (V, w_0) along the gradient of what remains, from the subspace in which the annotators' gradients at the
 * reward for all differ most.
 */
export function lowRankModel(d: number, rank: number, columns = 1): FeatureRewardModel {
  const wide = d / columns;
  const k = Math.min(rank, wide);
  const own = k * columns;
  const split = (shared: Float64Array) => ({ v: shared.subarray(0, wide * k), mean: shared.subarray(wide * k) });
  return {
    name: 'low-rank',
    d,
    layout: [
      { name: 'factor', shape: [wide, k] },
      { name: 'mean', shape: [d] },
    ],
    columns,
    own,
    k: own,
    convex: true,
    items({ features, n }, shared) {
      const { v, mean } = split(shared);
      return { base: project(features, n, d, mean, 1), points: project(features, n * columns, wide, v, k) };
    },
    itemsBack({ features, n }, _shared, _side, gradient, out) {
      const { v, mean } = split(out);
      projectBack(features, n, d, gradient.base, 1, mean);
      projectBack(features, n * columns, wide, gradient.points, k, v);
    },
    user: (_shared, numbers, out) => out.set(numbers),
    userBack(_shared, _own, gradient, _outShared, outOwn) {
      for (let c = 0; c < own; c++) outOwn[c] += gradient[c];
    },
    weights(shared, c) {
      const { v, mean } = split(shared);
      const w = mean.slice();
      for (let j = 0; j < columns; j++) {
        const part = project(v, wide, k, c.subarray(j * k, (j + 1) * k), 1);
        for (let i = 0; i < wide; i++) w[j * wide + i] += part[i];
      }
      return w;
    },
    async fit(table, votes, options) {
      const fit = new SubspaceFit(table, votes, k, options, columns);
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
  /** Rows of V. */
  readonly #wide: number;
  /** An annotator's numbers. */
  readonly #own: number;
  /** Coordinates [N, columns, k] in the basis `q`, from which the next fit of them starts. */
  z: Float64Array;
  q: Float64Array;
  readonly #l2: number;

  constructor(
    readonly table: Features,
    readonly votes: Votes,
    readonly k: number,
    readonly options: FeatureModelOptions,
    readonly columns = 1,
  ) {
    this.#by = votesByAnnotator(votes);
    this.#count = votes.annotators.length;
    this.#wide = table.d / columns;
    this.#own = k * columns;
    this.z = new Float64Array(this.#count * this.#own);
    this.q = new Float64Array(this.#wide * k);
    this.#l2 = Math.max(options.l2, 1e-6);
  }

  async run(): Promise<Fitted> {
    const { table, votes, k, options } = this;
    const { d } = table;
    const size = this.#wide * k;
    const prior = { l2: sharedPrecision(this.#l2), signal: options.signal };
    const { w: mean } = await fitRidgeInTurns(table, votes, prior);
    const x = new Float64Array(size + d);
    x.set(this.start(mean));
    x.set(mean, size);
    const { value, steps, converged } = await lbfgsInTurns((at, gradient) => this.objective(at, gradient), x, {
      maxSteps: 500,
      tolerance: 1e-5,
      relative: 1e-9,
      signal: options.signal,
    });
    this.objective(x, new Float64Array(x.length));
    const shared = new Float64Array(size + d);
    shared.set(this.q);
    shared.set(x.subarray(size), size);
    return {
      parameters: { shared, own: this.z.slice() },
      report: { objective: value, steps, converged },
    };
  }

  /** Subspace iteration on Σ_u g_u g_uᵀ, g_u [d / columns, columns] the gradient of u's votes at the reward for all. */
  start(mean: Float64Array, rounds = 12): Float64Array {
    const { table, votes, k, options } = this;
    const { d, n } = table;
    const [wide, own, rows] = [this.#wide, this.#own, n * this.columns];
    const random = new Random(options.seed, 0x5eed);
    const v = Float64Array.from({ length: wide * k }, () => random.normal());
    orthonormalise(v, wide, k);
    const base = project(table.features, n, d, mean, 1);
    // With coordinates 0 the loss sees the base alone: the gradient of c_u is V g_u.
    const zeros = new Float64Array(this.#count * own);
    for (let round = 0; round < rounds; round++) {
      const points = project(table.features, rows, wide, v, k);
      const g = this.#gradient();
      bilinearLoss(votes, { base, points }, zeros, own, g);
      const coordinates = g.users;
      const back = this.#gradient();
      bilinearAt(votes, base, coordinates, own, back);
      const next = new Float64Array(wide * k);
      projectBack(table.features, rows, wide, back.points, k, next);
      for (let i = 0; i < v.length; i++) v[i] = next[i] + 1e-12 * random.normal();
      orthonormalise(v, wide, k);
    }
    return v;
  }

  /** F at x = [V | w_0], and its gradient: by the envelope theorem that at fixed best coordinates. */
  objective(x: Float64Array, gradient: Float64Array): number {
    const { table, votes, k } = this;
    const { d, n } = table;
    const [wide, own, rows] = [this.#wide, this.#own, n * this.columns];
    const l2 = this.#l2;
    const q = x.slice(0, wide * k);
    const r = orthonormalise(q, wide, k);
    const mean = x.subarray(wide * k);
    const base = project(table.features, n, d, mean, 1);
    const points = project(table.features, rows, wide, q, k);
    this.#solve(q, base, points);
    const g = this.#gradient();
    let value = bilinearLoss(votes, { base, points }, this.z, own, g);
    gradient.fill(0);
    const gv = gradient.subarray(0, wide * k);
    const gm = gradient.subarray(wide * k);
    projectBack(table.features, rows, wide, g.points, k, gv);
    projectBack(table.features, n, d, g.base, 1, gm);
    for (let j = 0; j < d; j++) {
      value += 0.5 * sharedPrecision(l2) * mean[j] * mean[j];
      gm[j] += sharedPrecision(l2) * mean[j];
    }
    // Prior on V z: l2 Q Σ z zᵀ; then from Q to V = Q R by R⁻ᵀ on the right.
    const moment = new Float64Array(k * k);
    for (let at = 0; at < this.z.length; at += k) {
      for (let a = 0; a < k; a++) {
        value += 0.5 * l2 * this.z[at + a] ** 2;
        for (let b = 0; b < k; b++) moment[a * k + b] += this.z[at + a] * this.z[at + b];
      }
    }
    const row = new Float64Array(k);
    for (let j = 0; j < wide; j++) {
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
    const own = this.#own;
    const turn = new Float64Array(k * k);
    projectBack(q, this.#wide, k, this.q, k, turn);
    const turned = new Float64Array(k);
    for (let at = 0; at < this.z.length; at += k) {
      const z = this.z.subarray(at, at + k);
      z.set(project(turn, k, k, z, 1, turned));
    }
    if (isLarge(votes.items.length * own * own)) {
      newtonNative(votes, { base, points }, this.z, own, this.#l2, 1e-14);
      this.q = q;
      return;
    }
    for (let u = 0; u < this.#count; u++) {
      const which = this.#by.votes.subarray(this.#by.offsets[u], this.#by.offsets[u + 1]);
      const z = this.z.subarray(u * own, (u + 1) * own);
      if (which.length === 0) {
        z.fill(0);
        continue;
      }
      z.set(fitLinear({ votes, which, points, k: own, base, l2: this.#l2 }, z, 1e-14).z);
    }
    this.q = q;
  }

  #gradient(): BilinearGradient {
    return {
      base: new Float64Array(this.table.n),
      points: new Float64Array(this.table.n * this.#own),
      users: new Float64Array(this.#count * this.#own),
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
