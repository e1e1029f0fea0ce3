import { Random } from '../../base/random.js';
import { project, projectBack } from '../linalg.js';
import { jointFit } from './joint.js';
import type { FeatureRewardModel } from './model.js';
import { softmax, softmaxBack } from './simplex.js';

/**
 * PAL (2406.08469), ideal points: r_ui = −‖F x_i − a_u‖², F [d, m] a learnt embedding, a_u = Aᵀ softmax(b + s_u) a
 * mixture of K prototypes A [K, m]; m = K. Up to what all items share, r_ui = −‖F x_i‖² + 2 (F x_i)·a_u. The prior is on
 * s_u; a new annotator fits only the mixture.
 */
export function palModel(d: number, rank: number): FeatureRewardModel {
  const k = rank;
  const parts = (shared: Float64Array) => ({
    f: shared.subarray(0, d * k),
    prototypes: shared.subarray(d * k, d * k + k * k),
    logits: shared.subarray(d * k + k * k),
  });
  const scores = new Float64Array(k);
  const p = new Float64Array(k);
  const mixture = (logits: Float64Array, own: Float64Array) => {
    for (let c = 0; c < k; c++) scores[c] = logits[c] + own[c];
    return softmax(scores, p);
  };
  const model: FeatureRewardModel = {
    name: 'pal',
    d,
    layout: [
      { name: 'embedding', shape: [d, k] },
      { name: 'prototypes', shape: [k, k] },
      { name: 'logits', shape: [k] },
    ],
    own: k,
    k,
    convex: false,
    items(table, shared) {
      const points = project(table.features, table.n, d, parts(shared).f, k);
      const base = new Float64Array(table.n);
      for (let i = 0; i < table.n; i++) {
        for (let c = 0; c < k; c++) {
          base[i] -= points[i * k + c] ** 2;
          points[i * k + c] *= 2;
        }
      }
      return { base, points };
    },
    itemsBack(table, _shared, side, gradient, out) {
      const g = new Float64Array(gradient.points.length);
      for (let i = 0; i < table.n; i++) {
        // side.points is 2 F x: d(−‖F x‖²) = −2 F x, and the points are twice the embedding.
        for (let c = 0; c < k; c++) {
          const at = i * k + c;
          g[at] = 2 * gradient.points[at] - gradient.base[i] * side.points[at];
        }
      }
      projectBack(table.features, table.n, d, g, k, parts(out).f);
    },
    user(shared, own, out) {
      const { prototypes, logits } = parts(shared);
      const weights = mixture(logits, own);
      out.fill(0);
      for (let a = 0; a < k; a++) for (let c = 0; c < k; c++) out[c] += weights[a] * prototypes[a * k + c];
    },
    userBack(shared, own, gradient, outShared, outOwn) {
      const { prototypes, logits } = parts(shared);
      const out = parts(outShared);
      const weights = mixture(logits, own);
      const gWeights = new Float64Array(k);
      for (let a = 0; a < k; a++) {
        for (let c = 0; c < k; c++) {
          out.prototypes[a * k + c] += weights[a] * gradient[c];
          gWeights[a] += prototypes[a * k + c] * gradient[c];
        }
      }
      const back = softmaxBack(weights, gWeights);
      for (let a = 0; a < k; a++) {
        out.logits[a] += back[a];
        outOwn[a] += back[a];
      }
    },
    async fit(table, votes, options) {
      const random = new Random(options.seed, 0x9a1);
      const shared = new Float64Array(d * k + k * k + k);
      const { f, prototypes } = parts(shared);
      for (let i = 0; i < f.length; i++) f[i] = (0.3 * random.normal()) / Math.sqrt(d);
      for (let i = 0; i < prototypes.length; i++) prototypes[i] = random.normal();
      return jointFit(model, table, votes, options, { shared, own: new Float64Array(votes.annotators.length * k) });
    },
  };
  return model;
}
