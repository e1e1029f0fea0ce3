import { emptyType, eStep, type Posterior } from '../em/estep.js';

/** K policies that EM trains, as its two steps see them. Rows are the votes V_ij; `of` says whose each is. */
export interface TypedVotes {
  readonly types: number;
  readonly annotators: number;
  /** Index of each row's annotator, [rows]. */
  readonly of: Int32Array;
  /** Batches of a round's M-step. */
  batches(round: number): number;
  /** One step on π_k ← argmax Σ_i γ_ik Σ_j log p_k(V_ij), all types at once. */
  improve(state: EmState): Promise<void>;
  /** log p_k(V_j) of every row, K arrays [rows], and 1 for the rows that this round's E-step may look at. */
  likelihoods(round: number): Promise<{ values: Float64Array[]; used: Uint8Array }>;
  /** Every policy is the reference again. */
  restart(): void;
  /** The empty type starts again as a copy of another. */
  reseed(type: number, like: number): void;
}

export interface EmOptions {
  rounds: number;
  /** η from the responsibilities, or 1/K each. */
  weights: 'learned' | 'uniform';
  /** τ of the E-step; 0: hard EM (cluster-DPO). */
  temperature: number;
  /** Every M-step starts from the reference again. */
  restart: boolean;
}

/** All that EM remembers between two batches, besides the policies. */
export interface EmState {
  /** Rounds done. */
  round: number;
  /** Batches done of the round's M-step. */
  batch: number;
  /** Optimizer steps done. */
  step: number;
  /** Responsibilities γ, K arrays [annotators]. */
  gamma: Float64Array[];
  /** η, [K]. */
  weights: Float64Array;
  /** Log-likelihood of a vote after each round. */
  history: number[];
  reseeded: number;
}

/** What a round came to. */
export interface Round extends Posterior {
  /** Rows that the E-step looked at. */
  rows: number;
  /** Annotators whose likeliest type is another than before. */
  moved: number;
  /** The type that had lost all annotators and was started again, from 0; else −1. */
  reseeded: number;
}

const mostReseeds = 5;

/** η_k = mean_i γ_ik. */
export function meanWeights(gamma: readonly Float64Array[]): Float64Array {
  return Float64Array.from(gamma, (own) => Math.max(1e-300, own.reduce((a, b) => a + b, 0) / Math.max(1, own.length)));
}

/**
 * EM-DPO (Chidambaram, Seetharaman and Syrgkanis 2024, arXiv 2405.15065): types z_k with a policy π_k each, found from who
 * voted for what. With rewards in the place of β log π_k/π_ref it is EM over reward models; with the likelihood of a ranking
 * (Plackett–Luce) in the place of σ it takes rankings.
 *
 * The M-step comes first: `state.gamma` is where EM starts from. Equal policies would leave γ = η for ever, so a start
 * assigns annotators and lets the policies follow.
 */
export async function emDpo(
  votes: TypedVotes,
  state: EmState,
  options: EmOptions,
  after: { step(): Promise<void>; round(round: Round): Promise<void> },
): Promise<void> {
  while (state.round < options.rounds) {
    // M-step: η_k = mean_i γ_ik; π_k = argmax Σ_i γ_ik Σ_j log σ_k(V_ij).
    if (state.batch === 0) {
      if (options.weights === 'learned') state.weights = meanWeights(state.gamma);
      if (options.restart) votes.restart();
    }
    while (state.batch < votes.batches(state.round)) {
      await votes.improve(state);
      state.batch++;
      state.step++;
      if (state.batch < votes.batches(state.round)) await after.step();
    }
    // E-step: γ_ik = η_k ∏_j σ_k(V_ij) / Σ_ℓ η_ℓ ∏_j σ_ℓ(V_ij).
    const { values, used } = await votes.likelihoods(state.round);
    const posterior = eStep(values, votes.of, votes.annotators, state.weights, options.temperature);
    keepUnseen(posterior.gamma, state.gamma, votes.of, used);
    const rows = used.reduce((n, x) => n + x, 0);
    const moved = countMoved(state.gamma, posterior.gamma);
    state.gamma = posterior.gamma;
    state.history.push(posterior.logLikelihood / Math.max(1, rows));
    state.round++;
    state.batch = 0;
    const reseeded = reseed(votes, state, posterior, options.rounds);
    await after.round({ ...posterior, rows, moved, reseeded });
  }
}

/** Annotators without a row in this E-step stay who they were. */
function keepUnseen(gamma: Float64Array[], before: readonly Float64Array[], of: Int32Array, used: Uint8Array): void {
  const seen = new Uint8Array(gamma[0].length);
  of.forEach((u, row) => {
    if (used[row]) seen[u] = 1;
  });
  gamma.forEach((own, k) => {
    for (let u = 0; u < own.length; u++) if (!seen[u]) own[u] = before[k][u];
  });
}

function countMoved(before: readonly Float64Array[], after: readonly Float64Array[]): number {
  const top = (gamma: readonly Float64Array[], u: number) =>
    gamma.reduce((best, own, k) => (own[u] > gamma[best][u] ? k : best), 0);
  let moved = 0;
  for (let u = 0; u < before[0].length; u++) if (top(before, u) !== top(after, u)) moved++;
  return moved;
}

/** An empty type takes those annotators whom the mixture explains worst, and the heaviest type's policy to begin with. */
function reseed(votes: TypedVotes, state: EmState, posterior: Posterior, rounds: number): number {
  if (state.reseeded >= mostReseeds || state.round >= rounds) return -1;
  const empty = emptyType(posterior, votes.of);
  if (empty < 0) return -1;
  state.reseeded++;
  const mass = posterior.gamma.map((own, k) => (k === empty ? -1 : own.reduce((a, b) => a + b, 0)));
  const heaviest = mass.indexOf(Math.max(...mass));
  votes.reseed(empty, heaviest);
  return empty;
}
