/** What each annotator's votes say of their type. */
export interface Posterior {
  /** Responsibilities, [K] arrays of [N]. */
  gamma: Float64Array[];
  /** What exact EM raises: τ Σ_i log Σ_k exp((log η_k + ℓ_ik) / τ); for τ = 1 the log-likelihood, for hard EM its best type's. */
  objective: number;
  /** Σ_i log Σ_k η_k exp ℓ_ik, whatever τ is. */
  logLikelihood: number;
  /** log Σ_k η_k exp ℓ_ik of each annotator, [N]. */
  evidence: Float64Array;
}

/**
 * γ_ik = η_k ∏_j p_k(V_ij) / Σ_ℓ η_ℓ ∏_j p_ℓ(V_ij), in logs with log-sum-exp in float64 (Chidambaram et al. 2024, E-step).
 *
 * `likelihoods`: K arrays of w_v log p_k(v), [m]; `annotator` [m]; `weights` η [K]; `temperature` τ divides the exponent,
 * 0 gives all to the best type (hard EM; ties to the first). An annotator whose votes have probability 0 under every type
 * gets γ = η.
 */
export function eStep(
  likelihoods: readonly Float64Array[],
  annotator: Int32Array,
  annotators: number,
  weights: ArrayLike<number>,
  temperature = 1,
): Posterior {
  const types = likelihoods.length;
  const gamma = likelihoods.map((values, k) => {
    const sums = new Float64Array(annotators).fill(Math.log(weights[k]));
    for (let v = 0; v < values.length; v++) sums[annotator[v]] += values[v];
    return sums;
  });
  const evidence = new Float64Array(annotators);
  let objective = 0;
  let logLikelihood = 0;
  for (let i = 0; i < annotators; i++) {
    let top = Number.NEGATIVE_INFINITY;
    let best = 0;
    for (let k = 0; k < types; k++) {
      if (gamma[k][i] > top) {
        top = gamma[k][i];
        best = k;
      }
    }
    if (top === Number.NEGATIVE_INFINITY) {
      // No type can have cast these votes: they tell nothing apart.
      for (let k = 0; k < types; k++) gamma[k][i] = weights[k];
      evidence[i] = top;
      logLikelihood += top;
      objective += top;
      continue;
    }
    let plain = 0;
    let tempered = 0;
    for (let k = 0; k < types; k++) {
      const below = gamma[k][i] - top;
      const e = Math.exp(below);
      plain += e;
      const share = temperature === 1 ? e : temperature === 0 ? (k === best ? 1 : 0) : Math.exp(below / temperature);
      tempered += share;
      gamma[k][i] = share;
    }
    for (let k = 0; k < types; k++) gamma[k][i] /= tempered;
    evidence[i] = top + Math.log(plain);
    logLikelihood += evidence[i];
    objective += temperature === 1 ? evidence[i] : top + temperature * Math.log(tempered);
  }
  return { gamma, objective, logLikelihood, evidence };
}

/** A type with less than half an annotator to itself is empty. */
const fewest = 0.5;

/**
 * The first type that has lost all annotators, or −1. Its place is given those whom the mixture explains worst for the number
 * of their votes, N / 2K of them: `posterior.gamma` is changed.
 */
export function emptyType({ gamma, evidence }: Posterior, annotator: Int32Array): number {
  const annotators = evidence.length;
  const empty = gamma.length > 1 ? gamma.findIndex((own) => own.reduce((a, b) => a + b, 0) < fewest) : -1;
  if (empty < 0) return -1;
  const counts = new Float64Array(annotators);
  for (const u of annotator) counts[u]++;
  const worst = [...counts.keys()]
    .filter((u) => counts[u] > 0)
    .sort((a, b) => evidence[a] / counts[a] - evidence[b] / counts[b])
    .slice(0, Math.max(1, Math.ceil(annotators / (2 * gamma.length))));
  for (const [k, own] of gamma.entries()) for (const u of worst) own[u] = k === empty ? 1 : 0;
  return empty;
}
