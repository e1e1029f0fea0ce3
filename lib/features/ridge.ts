import { PluralignError } from '../native/errors.js';
import { bilinearLoss } from './bilinear.js';
import { type LbfgsOptions, lbfgs, lbfgsInTurns, type Objective } from './lbfgs.js';
import { project, projectBack } from './linalg.js';
import type { Features } from './models/model.js';
import { fitLinear } from './newton.js';
import { differencesOf, fitInSpan } from './span.js';
import { subTable, type Votes } from './votes.js';

export interface RidgeOptions {
  /** Precision of the prior N(0, 1/l2) on each weight. */
  l2: number;
  /** Indices of the votes that count; default: all. */
  which?: Int32Array;
  signal?: AbortSignal;
}

export interface RidgeFit {
  /** [d] */
  w: Float64Array;
  value: number;
  steps: number;
  converged: boolean;
}

/** Unknowns up to which Newton's cubic cost is worth its few steps. */
const newtonSize = 160;
/** And products of votes and squared features. */
const newtonWork = 5e7;

/**
 * One linear reward from votes: the exact mode of the log-posterior. Where there are fewer votes than features, it is
 * found in the span of the votes' differences, outside which the prior holds the weights at zero.
 */
export function fitRidge(table: Features, votes: Votes, options: RidgeOptions): RidgeFit {
  const problem = ridge(table, votes, options);
  return 'fit' in problem ? problem.fit : { w: problem.w, ...lbfgs(problem.objective, problem.w, problem.limits) };
}

/** The same, letting other work in between the steps of a long fit. */
export async function fitRidgeInTurns(table: Features, votes: Votes, options: RidgeOptions): Promise<RidgeFit> {
  const problem = ridge(table, votes, options);
  if ('fit' in problem) return problem.fit;
  return { w: problem.w, ...(await lbfgsInTurns(problem.objective, problem.w, problem.limits)) };
}

/** What is small is fitted at once; what is not is an objective to minimise from w. */
function ridge(
  table: Features,
  votes: Votes,
  { l2, which, signal }: RidgeOptions,
): { fit: RidgeFit } | { objective: Objective; w: Float64Array; limits: LbfgsOptions } {
  if (signal?.aborted) throw new PluralignError('ABORTED', 'stopped on request');
  const { d } = table;
  const indices = which ?? Int32Array.from({ length: votes.m }, (_, v) => v);
  const differences = differencesOf(votes, indices);
  if (differences === 0) return { fit: { w: new Float64Array(d), value: 0, steps: 0, converged: true } };
  const local = subTable(table, votes, indices);
  const { n } = local.table;
  if (differences < Math.min(d, newtonSize) && l2 > 0) {
    const { z, value, steps } = fitInSpan({
      votes: local.votes,
      points: Float64Array.from(local.table.features),
      k: d,
      l2,
    });
    return { fit: { w: z, value, steps, converged: true } };
  }
  const precision = Math.max(l2, 1e-9);
  // Newton's Hessian costs d² a vote and d³ a step; L-BFGS with items projected once costs n d + votes a step.
  if (d <= newtonSize && differences * d * d <= newtonWork) {
    const points = Float64Array.from(local.table.features);
    const { z, value, steps } = fitLinear({ votes: local.votes, points, k: d, l2: precision }, undefined, 1e-14);
    return { fit: { w: z, value, steps, converged: true } };
  }
  const base = new Float64Array(n);
  const none = new Float64Array(0);
  const objective: Objective = (x, g) => {
    project(local.table.features, n, d, x, 1, base);
    const gradient = { base: new Float64Array(n), points: none, users: none };
    let sum = bilinearLoss(local.votes, { base, points: none }, none, 0, gradient);
    for (let j = 0; j < d; j++) {
      sum += 0.5 * precision * x[j] * x[j];
      g[j] = precision * x[j];
    }
    projectBack(local.table.features, n, d, gradient.base, 1, g);
    return sum;
  };
  return { objective, w: new Float64Array(d), limits: { signal, maxSteps: 1000 } };
}
