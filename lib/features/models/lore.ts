import { Random } from '../../base/random.js';
import { project, projectBack } from '../linalg.js';
import { fitRidgeInTurns } from '../ridge.js';
import { jointFit } from './joint.js';
import { type FeatureRewardModel, sharedPrecision } from './model.js';
import { softmax, softmaxBack } from './simplex.js';

/**
 * LoRe (2504.14439): r_ui = x_i·V softmax(b + a_u), a mixture of K basis rewards V [d, K]. The offset b is the logits of
 * whoever is unknown; the prior is on a_u. V, b and a fitted jointly with L-BFGS.
 */
export function loreModel(d: number, rank: number): FeatureRewardModel {
  const k = rank;
  const scores = new Float64Array(k);
  const p = new Float64Array(k);
  const mixture = (shared: Float64Array, own: Float64Array) => {
    for (let c = 0; c < k; c++) scores[c] = shared[d * k + c] + own[c];
    return softmax(scores, p);
  };
  const model: FeatureRewardModel = {
    name: 'lore',
    d,
    layout: [
      { name: 'basis', shape: [d, k] },
      { name: 'logits', shape: [k] },
    ],
    own: k,
    k,
    convex: false,
    items: (table, shared) => ({
      base: new Float64Array(table.n),
      points: project(table.features, table.n, d, shared, k),
    }),
    itemsBack: (table, _shared, _side, gradient, out) =>
      projectBack(table.features, table.n, d, gradient.points, k, out),
    user: (shared, own, out) => out.set(mixture(shared, own)),
    userBack(shared, own, gradient, outShared, outOwn) {
      const back = softmaxBack(mixture(shared, own), gradient);
      for (let c = 0; c < k; c++) {
        outShared[d * k + c] += back[c];
        outOwn[c] += back[c];
      }
    },
    weights: (shared, c) => project(shared, d, k, c, 1),
    async fit(table, votes, options) {
      const random = new Random(options.seed, 0x10e);
      const start = { l2: sharedPrecision(options.l2), signal: options.signal };
      const { w } = await fitRidgeInTurns(table, votes, start);
      const size = Math.sqrt(w.reduce((sum, element) => sum + element * element, 0) / d) || 0.1;
      const shared = new Float64Array(d * k + k);
      for (let j = 0; j < d; j++) for (let c = 0; c < k; c++) shared[j * k + c] = w[j] + size * random.normal();
      return jointFit(model, table, votes, options, { shared, own: new Float64Array(votes.annotators.length * k) });
    },
  };
  return model;
}
