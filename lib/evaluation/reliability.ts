/**
 * Expected calibration error of claims held with a confidence in [0, 1]: over equal bins of confidence, the mean distance of
 * confidence and share of right claims, weighted by how many fall in a bin (Guo et al. 2017). 0 for no claims.
 */
export function expectedCalibrationError(confidence: readonly number[], right: readonly boolean[], bins = 10): number {
  const sums = Array.from({ length: bins }, () => ({ confidence: 0, right: 0 }));
  confidence.forEach((c, i) => {
    const bin = sums[Math.min(bins - 1, Math.max(0, Math.floor(c * bins)))];
    bin.confidence += c;
    bin.right += right[i] ? 1 : 0;
  });
  return sums.reduce((sum, bin) => sum + Math.abs(bin.confidence - bin.right), 0) / Math.max(1, confidence.length);
}
