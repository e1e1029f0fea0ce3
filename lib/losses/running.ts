/** A mean that goes on from step to step: `count` is the weight of what it has seen. */
export interface RunningMean {
  mean: number;
  count: number;
}

/** Σ w x / Σ w over every array together; 0 where nothing has weight. */
export function weightedMean(arrays: Float64Array[], weights: Float64Array | undefined): RunningMean {
  let sum = 0;
  let count = 0;
  for (const values of arrays)
    values.forEach((x, i) => {
      const w = weights ? weights[i] : 1;
      sum += w * x;
      count += w;
    });
  return { mean: count ? sum / count : 0, count };
}

/** The running mean after a batch. */
export function advance(running: RunningMean, batch: RunningMean): RunningMean {
  const count = running.count + batch.count;
  return count > 0 ? { mean: running.mean + ((batch.mean - running.mean) * batch.count) / count, count } : running;
}
