/** How the learning rate runs: warm-up from zero, then constant, falling linearly, or half a cosine. */
export interface Schedule {
  kind: 'constant' | 'cosine' | 'linear';
  /** Share of the steps over which the rate rises linearly from 0; rounded up to whole steps. */
  warmup: number;
  /** Where linear and cosine end, as a share of the peak rate. */
  minRatio: number;
}

/** Whole warm-up steps. */
export function warmupSteps(steps: number, warmup: number): number {
  // Decimal shares are not exact in binary: 0.07 of 100 steps are 7, not 8.
  return Math.max(0, Math.ceil(steps * warmup - 1e-9));
}

/**
 * Factor on the peak learning rate at step `step` in [0, steps): the numbers of transformers'
 * `get_{constant,linear,cosine}_schedule_with_warmup` (and of `get_cosine_with_min_lr_schedule_with_warmup`).
 */
export function learningRateFactor(step: number, steps: number, schedule: Schedule): number {
  const warmup = warmupSteps(steps, schedule.warmup);
  if (step < warmup) return step / Math.max(1, warmup);
  if (schedule.kind === 'constant') return 1;
  const after = Math.max(1, steps - warmup);
  const factor =
    schedule.kind === 'linear'
      ? Math.max(0, (steps - step) / after)
      : 0.5 * (1 + Math.cos((Math.PI * (step - warmup)) / after));
  return Math.max(0, factor * (1 - schedule.minRatio) + schedule.minRatio);
}
