import { project, projectBack } from '../linalg.js';
import { fitRidgeInTurns } from '../ridge.js';
import type { FeatureRewardModel } from './model.js';

/** One reward for all: r_i = w·x_i, the mode of the posterior under the prior N(0, 1/l2) on w. Convex. */
export function globalModel(d: number): FeatureRewardModel {
  return {
    name: 'global',
    d,
    layout: [{ name: 'mean', shape: [d] }],
    own: 0,
    k: 0,
    convex: true,
    items: (table, shared) => ({ base: project(table.features, table.n, d, shared, 1), points: new Float64Array(0) }),
    itemsBack: (table, _shared, _side, gradient, out) => projectBack(table.features, table.n, d, gradient.base, 1, out),
    user() {},
    userBack() {},
    weights: (shared) => shared.slice(),
    async fit(table, votes, { l2, signal }) {
      const { w, value, steps, converged } = await fitRidgeInTurns(table, votes, { l2, signal });
      return {
        parameters: { shared: w, own: new Float64Array(0) },
        report: { objective: value, steps, converged },
      };
    },
  };
}
