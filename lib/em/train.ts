import type { ResolvedConfig } from '../config/schema.js';
import type { TrainOptions } from '../training/train.js';
import type { EmSummary } from './summary.js';

/** Runs a method that finds types of annotators: over rewards on features, or over policies of a language model. */
export async function trainEm(config: ResolvedConfig, options: TrainOptions = {}): Promise<EmSummary> {
  if (config.model === 'features') return (await import('./features/train.js')).trainMixture(config, options);
  return (await import('./language/train.js')).trainTypes(config, options);
}
