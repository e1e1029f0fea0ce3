/** Schwarz's criterion −2 ℓ + p log n, n the number of votes; the smallest is best. */
export function bic(logLikelihood: number, parameters: number, votes: number): number {
  return -2 * logLikelihood + parameters * Math.log(Math.max(1, votes));
}

/** Types whose choices between the votes' items differ less than this, in probability and on average, are one. */
export const alike = 0.01;
