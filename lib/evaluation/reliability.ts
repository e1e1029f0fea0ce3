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

/** Of ten equal bins of confidence max(p, 1 − p): pairs, mean confidence, share that the reward orders right. */
export interface ReliabilityBin {
  rows: number;
  confidence: number;
  accuracy: number;
}

/** @param margins reward of the choice minus that of the other, of decided pairs */
export function reliability(margins: readonly number[]): ReliabilityBin[] {
  const bins = Array.from({ length: 10 }, () => ({ rows: 0, confidence: 0, accuracy: 0 }));
  for (const margin of margins) {
    const confidence = 1 / (1 + Math.exp(-Math.abs(margin)));
    const bin = bins[Math.min(9, Math.floor((confidence - 0.5) * 20))];
    bin.rows++;
    bin.confidence += confidence;
    bin.accuracy += margin > 0 ? 1 : 0;
  }
  return bins
    .filter((bin) => bin.rows > 0)
    .map(({ rows, confidence, accuracy }) => ({ rows, confidence: confidence / rows, accuracy: accuracy / rows }));
}
