/**
 * Preference losses on per-completion scores, with gradients. Every loss is Σ_i w_i l_i / normaliser: pass the whole step's
 * normaliser to each pack and the packs' gradients add up to those of one batch.
 */
export * from './metrics.js';
export * from './pair.js';
export * from './ranking.js';
export * from './reward.js';
export type { RunningMean } from './running.js';
export * from './sft.js';
export * from './ties.js';
export * from './tokens.js';
export * from './unpaired.js';
