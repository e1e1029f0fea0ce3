import type { AdaptResult } from '../features/adapt.js';
import type { LoadOptions } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import type { AdaptVotersResult } from '../training/adapt.js';
import type { Stop } from '../training/signals.js';
import { stopOf } from '../training/signals.js';

/** Where the model of a run with adapters runs; what is not given is the run's own. */
export interface AdaptCommandOptions extends LoadOptions {
  run: string;
  votes: string[];
  /** Runs on features: another table of items than the run's. */
  items?: string;
  replace?: boolean;
  /** Runs on features: questions to ask next, and whom. */
  next?: number;
  annotators?: string[];
  /** Runs with adapters. */
  steps?: number;
  learningRate?: number;
  penalty?: number;
  stop: Stop;
  note: (text: string) => void;
}

/** `pluralign adapt`: adds annotators to a run, fitting only what is theirs. */
export async function adapt(options: AdaptCommandOptions): Promise<AdaptResult | AdaptVotersResult> {
  const { isFeatureRun } = await import('../features/run.js');
  if (await isFeatureRun(options.run)) {
    const { adapt: onFeatures } = await import('../features/adapt.js');
    const { run, votes, items, replace, next, annotators, note } = options;
    return onFeatures({ run, votes, items, replace, next, annotators, note, signal: stopOf(options.stop).signal });
  }
  if (options.votes.length === 0 || options.next !== undefined) {
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${options.run}: next questions are for runs on features; give --votes alone for a run with adapters`,
    );
  }
  const { adaptVoters } = await import('../training/adapt.js');
  return adaptVoters(options);
}
