import { Random } from '../../base/random.js';
import { PluralignError } from '../../native/errors.js';
import { spectralClusters } from '../agreement.js';
import { emptyType, eStep, type Posterior } from '../estep.js';
import { kMeans } from '../kmeans.js';
import { TypeFitter, type TypeState } from './newton.js';
import type { MixtureProblem } from './problem.js';
import { agreementOf, meanDifferences, randomRewards } from './start.js';

export interface MixtureOptions {
  types: number;
  /** M-steps of a start at most. Default 60. */
  rounds?: number;
  /** Starts; the one with the highest likelihood is kept. Default 8. */
  restarts?: number;
  /** Rewards at random, clusters of mean differences or of the agreement graph, or responsibilities to begin with, [K] arrays of [N]. */
  init?: 'random' | 'k-means' | 'spectral' | readonly Float64Array[];
  /** η from the responsibilities, or 1/K each. */
  weights?: 'learned' | 'uniform';
  /** τ of the E-step; 0: hard EM. Default 1. */
  temperature?: number;
  /** Prior on each type's rewards, N(0, 1/l2) on each coordinate. Default 0. */
  l2?: number;
  /** A start ends when a round gains less than this a vote. Default 1e-8. */
  tolerance?: number;
  seed?: number;
  signal?: AbortSignal;
  onRound?: (start: number, round: number, posterior: Posterior) => void;
  onNote?: (note: string) => void;
}

/** One start's end. Types come by falling weight. */
export interface Mixture {
  /** [K] */
  weights: Float64Array;
  /** K arrays [d] */
  rewards: Float64Array[];
  posterior: Posterior;
  /** Σ_i log Σ_k η_k p_k(votes of i) */
  logLikelihood: number;
  /** The log-likelihood after each round, the start's own first. */
  history: number[];
  rounds: number;
  converged: boolean;
  /** Types that lost all annotators and were started again. */
  reseeded: number;
}

export interface MixtureFit extends Mixture {
  /** Every start, in order. */
  starts: Mixture[];
  /** Fit of one type to all votes. */
  pooled: { beta: Float64Array; logLikelihood: number };
}

const mostReseeds = 5;

/**
 * EM for a mixture of K types with linear rewards under Plackett–Luce or Bradley–Terry votes; exact M-steps (Newton), so
 * that the likelihood cannot fall, which is asserted.
 *
 * Source: Chidambaram et al. 2024 (arXiv 2405.15065), with the reward r_k in the place of β log π_k/π_ref.
 * Throws `BAD_CONFIG` for more types than annotators, `ABORTED`, `INTERNAL` where the likelihood fell.
 */
export async function fitMixture(problem: MixtureProblem, options: MixtureOptions): Promise<MixtureFit> {
  const { types, restarts = 8, seed = 0, l2 = 0 } = options;
  const annotators = problem.votes.annotators.length;
  if (types > annotators)
    throw new PluralignError(
      'BAD_CONFIG',
      `em.types: found ${types}, expected at most the number of annotators, ${annotators}`,
    );
  const fitter = new TypeFitter(problem, l2);
  const all = new Float64Array(annotators).fill(1);
  const pooled = fitter.state();
  fitter.fit(pooled, all, 1e-9 * problem.votes.m);
  const one = pooled.likelihoods.reduce((a, b) => a + b, 0);
  const count = types === 1 || typeof options.init === 'object' ? 1 : restarts;
  const starts: Mixture[] = [];
  let best = 0;
  for (let s = 0; s < count; s++) {
    const start = await runStart(problem, fitter, options, pooled.beta, new Random(seed, s), s);
    starts.push(start);
    if (goal(start, fitter) > goal(starts[best], fitter)) best = s;
  }
  return { ...starts[best], starts, pooled: { beta: pooled.beta, logLikelihood: one } };
}

function goal(mixture: Mixture, fitter: TypeFitter): number {
  return mixture.posterior.objective - mixture.rewards.reduce((sum, beta) => sum + fitter.penalty(beta), 0);
}

async function runStart(
  problem: MixtureProblem,
  fitter: TypeFitter,
  options: MixtureOptions,
  pooled: Float64Array,
  random: Random,
  index: number,
): Promise<Mixture> {
  const { types, rounds = 60, temperature = 1, tolerance = 1e-8 } = options;
  const { votes } = problem;
  const annotators = votes.annotators.length;
  const note = (text: string) => options.onNote?.(`start ${index + 1}: ${text}`);
  const states: TypeState[] = [];
  const weights = new Float64Array(types).fill(1 / types);
  const close = 1e-7 * Math.max(1, votes.m);

  const mStep = (gamma: readonly Float64Array[]) => {
    states.forEach((state, k) => {
      if (options.weights !== 'uniform')
        weights[k] = Math.max(1e-300, gamma[k].reduce((a, b) => a + b, 0) / annotators);
      fitter.fit(state, gamma[k], close);
    });
  };
  begin(problem, fitter, options, pooled, random, states, mStep);

  const history: number[] = [];
  let last = Number.NEGATIVE_INFINITY;
  let reseeded = 0;
  let converged = false;
  let posterior: Posterior;
  for (let round = 0; ; round++) {
    // Lets the event loop run: a start is many rounds of milliseconds.
    await new Promise((resolve) => setImmediate(resolve));
    if (options.signal?.aborted) throw new PluralignError('ABORTED', 'stopped on request');
    posterior = eStep(
      states.map((s) => s.likelihoods),
      votes.annotator,
      annotators,
      weights,
      temperature,
    );
    history.push(posterior.logLikelihood);
    options.onRound?.(index, round, posterior);
    const value = posterior.objective - states.reduce((sum, s) => sum + fitter.penalty(s.beta), 0);
    if (!Number.isFinite(value))
      throw new PluralignError(
        'NON_FINITE',
        `the log-likelihood became ${value} in round ${round}; give em.l2 above 0`,
      );
    if (value < last - 1e-9 * (1 + Math.abs(last)))
      throw new PluralignError('INTERNAL', `the likelihood fell from ${last} to ${value} in round ${round} of EM`);
    converged = round > 0 && value - last < tolerance * votes.m;
    last = value;
    if (converged || round === rounds) break;
    if (reseeded < mostReseeds) {
      const empty = emptyType(posterior, votes.annotator);
      if (empty >= 0) {
        reseeded++;
        note(`type ${empty + 1} lost all annotators in round ${round} and was started again`);
        states[empty] = fitter.state(pooled.slice());
        last = Number.NEGATIVE_INFINITY;
      }
    }
    mStep(posterior.gamma);
  }
  const order = [...weights.keys()].sort((a, b) => weights[b] - weights[a]);
  return {
    weights: Float64Array.from(order, (k) => weights[k]),
    rewards: order.map((k) => states[k].beta),
    posterior: { ...posterior, gamma: order.map((k) => posterior.gamma[k]) },
    logLikelihood: posterior.logLikelihood,
    history,
    rounds: history.length - 1,
    converged,
    reseeded,
  };
}

function begin(
  problem: MixtureProblem,
  fitter: TypeFitter,
  options: MixtureOptions,
  pooled: Float64Array,
  random: Random,
  states: TypeState[],
  mStep: (gamma: readonly Float64Array[]) => void,
): void {
  const { types, init = 'random' } = options;
  const annotators = problem.votes.annotators.length;
  for (let k = 0; k < types; k++) {
    const noisy = types > 1 && init === 'random';
    states.push(fitter.state(noisy ? randomRewards(problem, pooled, random) : pooled.slice()));
  }
  if (types === 1 || init === 'random') return;
  if (typeof init !== 'string') {
    mStep(init);
    return;
  }
  const clusters =
    init === 'k-means'
      ? kMeans(meanDifferences(problem, annotators), annotators, problem.d, types, random)
      : spectralClusters(agreementOf(problem.votes), annotators, types, random);
  mStep(states.map((_, k) => Float64Array.from(clusters, (c) => (c === k ? 1 : 0))));
}
