import { loadConfig } from '../config/index.js';
import { train as run, type TrainSummary } from '../training/train.js';

/** `pluralign train`: a configuration file with overrides. */
export function train(
  path: string,
  options: { set: string[]; output?: string; resume: boolean; stop: { signal: AbortSignal; flag: Int32Array } },
): Promise<TrainSummary> {
  const config = loadConfig(path, options.set, { output: options.output });
  return run(config, { resume: options.resume, stop: options.stop });
}
