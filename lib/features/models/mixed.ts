import { project, projectBack } from '../linalg.js';
import { fitInSpan } from '../span.js';
import { subTable, votesByAnnotator } from '../votes.js';
import { SubspaceFit } from './low-rank.js';
import type { FeatureRewardModel } from './model.js';

/**
 * Low-rank with a remainder of everyone's own: w_u = w_0 + V z_u + e_u, z_u ~ N(0, 1/l2) in the k shared directions,
 * e_u ~ N(0, 1/residual) in all d. Where sharing has nothing to give it is one reward for each about a mean; where there
 * is nothing beside the shared directions a large `residual` leaves the low-rank model. V and w_0 are those of low-rank;
 * own numbers, [z_u | e_u · √(residual / l2)], have one prior and are an exact convex fit.
 */
export function mixedModel(d: number, rank: number): FeatureRewardModel {
  const k = Math.min(rank, d);
  const all = k + d;
  const parts = (shared: Float64Array) => ({
    v: shared.subarray(0, d * k),
    mean: shared.subarray(d * k, d * k + d),
    scale: shared[d * k + d],
  });
  const model: FeatureRewardModel = {
    name: 'mixed',
    d,
    layout: [
      { name: 'factor', shape: [d, k] },
      { name: 'mean', shape: [d] },
      { name: 'residual', shape: [1] },
    ],
    own: all,
    k: all,
    convex: true,
    items(table, shared) {
      const { v, mean, scale } = parts(shared);
      const { features, n } = table;
      const inside = project(features, n, d, v, k);
      const points = new Float64Array(n * all);
      for (let i = 0; i < n; i++) {
        for (let c = 0; c < k; c++) points[i * all + c] = inside[i * k + c];
        for (let j = 0; j < d; j++) points[i * all + k + j] = scale * features[i * d + j];
      }
      return { base: project(features, n, d, mean, 1), points };
    },
    itemsBack(table, _shared, _side, gradient, out) {
      const { features, n } = table;
      const inside = new Float64Array(n * k);
      let slope = 0;
      for (let i = 0; i < n; i++) {
        for (let c = 0; c < k; c++) inside[i * k + c] = gradient.points[i * all + c];
        for (let j = 0; j < d; j++) slope += gradient.points[i * all + k + j] * features[i * d + j];
      }
      projectBack(features, n, d, inside, k, out.subarray(0, d * k));
      projectBack(features, n, d, gradient.base, 1, out.subarray(d * k, d * k + d));
      out[d * k + d] += slope;
    },
    user: (_shared, own, out) => out.set(own),
    userBack(_shared, _own, gradient, _outShared, outOwn) {
      for (let c = 0; c < all; c++) outOwn[c] += gradient[c];
    },
    weights(shared, c) {
      const { v, mean, scale } = parts(shared);
      const w = project(v, d, k, c.subarray(0, k), 1);
      for (let j = 0; j < d; j++) w[j] += mean[j] + scale * c[k + j];
      return w;
    },
    async fit(table, votes, options) {
      const low = await new SubspaceFit(table, votes, k, options).run();
      const l2 = Math.max(options.l2, 1e-6);
      const shared = new Float64Array(d * k + d + 1);
      shared.set(low.parameters.shared);
      shared[d * k + d] = Math.sqrt(l2 / Math.max(options.residual ?? l2, 1e-6));
      const by = votesByAnnotator(votes);
      const own = new Float64Array(votes.annotators.length * all);
      let objective = 0;
      for (let u = 0; u < votes.annotators.length; u++) {
        if (u % 64 === 63) await new Promise((resolve) => setImmediate(resolve));
        const part = subTable(table, votes, by.votes.subarray(by.offsets[u], by.offsets[u + 1]));
        const { z, value } = fitInSpan({ votes: part.votes, ...model.items(part.table, shared), k: all, l2 });
        own.set(z, u * all);
        objective += value;
      }
      return { parameters: { shared, own }, report: { ...low.report, objective } };
    },
  };
  return model;
}
