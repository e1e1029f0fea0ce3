import { fitRidge } from '../ridge.js';
import { votesByAnnotator } from '../votes.js';
import type { FeatureRewardModel } from './model.js';

/**
 * One reward for each annotator from their votes alone: r_ui = w_u·x_i under the prior N(0, 1/l2). Convex. Whoever is
 * unknown gets the mean of all.
 */
export function localModel(d: number): FeatureRewardModel {
  return {
    name: 'local',
    d,
    layout: [{ name: 'mean', shape: [d] }],
    own: d,
    k: d,
    convex: true,
    items: (table) => ({ base: new Float64Array(table.n), points: Float64Array.from(table.features) }),
    itemsBack() {},
    user: (_shared, own, out) => out.set(own),
    userBack(_shared, _own, gradient, _outShared, outOwn) {
      for (let j = 0; j < d; j++) outOwn[j] += gradient[j];
    },
    weights: (_shared, c) => c.slice(),
    generic: (shared) => shared,
    async fit(table, votes, { l2, signal }) {
      const count = votes.annotators.length;
      const by = votesByAnnotator(votes);
      const own = new Float64Array(count * d);
      const mean = new Float64Array(d);
      let objective = 0;
      let steps = 0;
      let converged = true;
      for (let u = 0; u < count; u++) {
        if (u % 64 === 63) await new Promise((resolve) => setImmediate(resolve));
        const which = by.votes.subarray(by.offsets[u], by.offsets[u + 1]);
        const fit = fitRidge(table, votes, { l2, signal, which });
        own.set(fit.w, u * d);
        for (let j = 0; j < d; j++) mean[j] += fit.w[j] / count;
        objective += fit.value;
        steps = Math.max(steps, fit.steps);
        converged &&= fit.converged;
      }
      return { parameters: { shared: mean, own }, report: { objective, steps, converged } };
    },
  };
}
