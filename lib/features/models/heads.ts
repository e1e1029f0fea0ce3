import { Random } from '../../base/random.js';
import { project, projectBack } from '../linalg.js';
import { jointFit } from './joint.js';
import type { FeatureRewardModel } from './model.js';

/**
 * Shared features with free heads (Park et al. 2405.00254, RFM 2503.17338): r_ui = tanh(x_i M + b)·(h + h_u), M [d, k].
 * The head h is that of whoever is unknown, the prior is on h_u; for a new annotator the shared features are frozen, and
 * the head is a convex problem.
 */
export function headsModel(d: number, rank: number): FeatureRewardModel {
  const k = rank;
  const parts = (shared: Float64Array) => ({
    matrix: shared.subarray(0, d * k),
    bias: shared.subarray(d * k, d * k + k),
    head: shared.subarray(d * k + k),
  });
  const model: FeatureRewardModel = {
    name: 'heads',
    d,
    layout: [
      { name: 'features', shape: [d, k] },
      { name: 'bias', shape: [k] },
      { name: 'head', shape: [k] },
    ],
    own: k,
    k,
    convex: true,
    items(table, shared) {
      const { matrix, bias, head } = parts(shared);
      const points = project(table.features, table.n, d, matrix, k);
      const base = new Float64Array(table.n);
      for (let i = 0; i < table.n; i++) {
        for (let c = 0; c < k; c++) {
          const at = i * k + c;
          points[at] = Math.tanh(points[at] + bias[c]);
          base[i] += points[at] * head[c];
        }
      }
      return { base, points };
    },
    itemsBack(table, shared, side, gradient, out) {
      const { head } = parts(shared);
      const g = parts(out);
      const inner = new Float64Array(side.points.length);
      for (let i = 0; i < table.n; i++) {
        for (let c = 0; c < k; c++) {
          const at = i * k + c;
          g.head[c] += gradient.base[i] * side.points[at];
          inner[at] = (gradient.points[at] + gradient.base[i] * head[c]) * (1 - side.points[at] ** 2);
          g.bias[c] += inner[at];
        }
      }
      projectBack(table.features, table.n, d, inner, k, g.matrix);
    },
    user: (_shared, own, out) => out.set(own),
    userBack(_shared, _own, gradient, _outShared, outOwn) {
      for (let c = 0; c < k; c++) outOwn[c] += gradient[c];
    },
    async fit(table, votes, options) {
      const random = new Random(options.seed, 0x4ead);
      const shared = new Float64Array(d * k + 2 * k);
      const { matrix } = parts(shared);
      for (let i = 0; i < matrix.length; i++) matrix[i] = random.normal() / Math.sqrt(d);
      // Heads must differ at the start, or every shared feature would stay at a saddle.
      const own = Float64Array.from({ length: votes.annotators.length * k }, () => 0.1 * random.normal());
      return jointFit(model, table, votes, options, { shared, own });
    },
  };
  return model;
}
