import type { LoadOptions } from '../model/model.js';
import type { StopRequest } from '../training/signals.js';

/** What a model runs with, and how it is stopped. */
export interface DemoOptions extends Required<Pick<LoadOptions, 'dtype' | 'device' | 'threads'>> {
  stop: StopRequest;
}

/** The object of `demo --json`. Shares are between 0 and 1. */
export interface DemoResult {
  /** One row for each annotator, then means: accuracy on held-out votes under each policy. */
  table: Record<string, string | number>[];
  /** One row for each policy: what the stories that it writes now are like, and who likes them. */
  stories: Record<string, string | number>[];
  /** The same prompt under every policy, by the policy's name. */
  samples: ({ prompt: string } & Record<string, string>)[];
  /** What stories of the experts for two wishes, and of their mix, are worth to each wish, in [−1, 1]. */
  soup: Record<string, string | number>[];
  soup_samples: ({ prompt: string } & Record<string, string>)[];
  seconds: number;
  paths: { run: string; report: string };
}
