// What the tests of adapters by annotator share: two voters who want the opposite, on a tiny model.
import type { Config } from '../../lib/config/index.js';
import { fixture } from './runs.js';

export const tiny = fixture('reward');

export interface Vote {
  prompt: string;
  chosen: string;
  rejected: string;
  annotator?: string;
  tie?: boolean;
  margin?: number;
}

const prompts = ['bird', 'red sea', 'sat hill bird', 'the a some over', 'wind near bird', 'warm water'];

/** Each of `names` on every prompt; those at odd places want the opposite of the others. */
export function opposed(names: readonly string[]): Vote[] {
  return names.flatMap((annotator, u) =>
    prompts.map((prompt) => {
      const [chosen, rejected] = u % 2 ? [' the hill', ' red sea'] : [' red sea', ' the hill'];
      return { prompt, chosen, rejected, annotator };
    }),
  );
}

/** A short run with adapters by annotator on `data`. */
export function votersConfig(
  output: string,
  data: Config['data'],
  adapter: Exclude<Config['adapter'], 'full' | null | undefined>,
  changes: Partial<Pick<Config, 'method' | 'loss' | 'train'>> = {},
): Config {
  return {
    method: changes.method ?? 'reward',
    model: tiny.model,
    data,
    adapter: { r: 2, alpha: 4, targets: ['q_proj', 'v_proj', 'down_proj'], ...adapter },
    loss: changes.loss,
    train: {
      steps: 8,
      batch_size: 4,
      learning_rate: 0.02,
      schedule: 'constant',
      log_every: 1,
      save_every: null,
      dtype: 'float32',
      threads: 1,
      ...changes.train,
    },
    output,
  };
}
