import { type BilinearGradient, bilinearLoss } from '../bilinear.js';
import { type LbfgsOptions, lbfgsInTurns } from '../lbfgs.js';
import type { Votes } from '../votes.js';
import {
  type FeatureModelOptions,
  type FeatureRewardModel,
  type Features,
  type Fitted,
  type Parameters,
  sharedPrecision,
} from './model.js';

/**
 * Minus the log-posterior of shared and own parameters, [shared | own [N, own]] in one vector: the votes' loss, l2/2 on
 * own numbers and `sharedL2`/2 on shared ones. Writes the gradient.
 */
export function jointObjective(
  model: FeatureRewardModel,
  table: Features,
  votes: Votes,
  l2: number,
  x: Float64Array,
  gradient: Float64Array,
  sharedL2 = l2,
): number {
  const { k, own } = model;
  const annotators = votes.annotators.length;
  const size = x.length - annotators * own;
  const shared = x.subarray(0, size);
  const side = model.items(table, shared);
  const users = new Float64Array(annotators * k);
  const ownOf = (u: number) => x.subarray(size + u * own, size + (u + 1) * own);
  for (let u = 0; u < annotators; u++) model.user(shared, ownOf(u), users.subarray(u * k, (u + 1) * k));
  const g: BilinearGradient = {
    base: new Float64Array(table.n),
    points: new Float64Array(table.n * k),
    users: new Float64Array(annotators * k),
  };
  let value = bilinearLoss(votes, side, users, k, g);
  for (let i = 0; i < x.length; i++) {
    const precision = i < size ? sharedL2 : l2;
    value += 0.5 * precision * x[i] * x[i];
    gradient[i] = precision * x[i];
  }
  const gShared = gradient.subarray(0, size);
  model.itemsBack(table, shared, side, g, gShared);
  for (let u = 0; u < annotators; u++) {
    const at = size + u * own;
    model.userBack(shared, ownOf(u), g.users.subarray(u * k, (u + 1) * k), gShared, gradient.subarray(at, at + own));
  }
  return value;
}

/** Fits everything at once with L-BFGS from the given start, to convergence. */
export async function jointFit(
  model: FeatureRewardModel,
  table: Features,
  votes: Votes,
  options: FeatureModelOptions,
  start: Parameters,
  limits: LbfgsOptions = {},
): Promise<Fitted> {
  const size = start.shared.length;
  const x = new Float64Array(size + start.own.length);
  x.set(start.shared);
  x.set(start.own, size);
  const sharedL2 = sharedPrecision(options.l2);
  const { value, steps, converged } = await lbfgsInTurns(
    (at, gradient) => jointObjective(model, table, votes, options.l2, at, gradient, sharedL2),
    x,
    { maxSteps: 2000, signal: options.signal, ...limits },
  );
  return {
    parameters: { shared: x.slice(0, size), own: x.slice(size) },
    report: { objective: value, steps, converged },
  };
}
