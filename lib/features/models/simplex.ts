/** softmax of scores, into `out`. */
export function softmax(scores: Float64Array, out: Float64Array): Float64Array {
  const top = scores.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  let sum = 0;
  for (let c = 0; c < scores.length; c++) {
    out[c] = Math.exp(scores[c] - top);
    sum += out[c];
  }
  for (let c = 0; c < scores.length; c++) out[c] /= sum;
  return out;
}

/** Gradient at the scores of a gradient at the probabilities p. */
export function softmaxBack(p: Float64Array, gradient: Float64Array): Float64Array {
  let mean = 0;
  for (let c = 0; c < p.length; c++) mean += p[c] * gradient[c];
  return p.map((value, c) => value * (gradient[c] - mean));
}
