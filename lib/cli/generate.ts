import { Command } from 'commander';
import { PluralignError } from '../native/errors.js';
import { printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import {
  addJsonOption,
  addModelOptions,
  integer,
  type ModelOptions,
  modelOptions,
  parseWeights,
  real,
  withStop,
} from './shared.js';

export interface Sampling {
  /** Sample i is drawn with seed + i. */
  seed: number;
  samples: number;
  maxNewTokens: number;
  /** 0: greedy. */
  temperature: number;
  /** 0: off. */
  topK: number;
  /** 1: off. */
  topP: number;
}

export interface GenerateCommandOptions extends ModelOptions, Sampling {
  prompt: string;
  /** Weight of each adapter by name: the adapters are mixed. */
  weights?: Record<string, number>;
  /** Speak as this annotator of the run. */
  annotator?: string;
}

/** The object of `generate --json`. */
export interface GenerateResult {
  prompt: string;
  samples: { policy: string; seed: number; text: string; tokens: number }[];
}

export interface GenerateApi {
  generateCommand(options: GenerateCommandOptions): Promise<GenerateResult>;
}

function human(result: GenerateResult): string {
  if (result.samples.length === 1) return result.samples[0].text;
  return result.samples.map((s) => `--- ${printableLine(s.policy)}, seed ${s.seed}\n${s.text}`).join('\n');
}

function checkWeights(weights: Record<string, number> | undefined, options: ModelOptions): void {
  if (!weights || options.run !== undefined) return;
  const names = options.adapters.map((a) => a.name);
  for (const name of Object.keys(weights)) {
    if (names.includes(name)) continue;
    const known = names.length > 0 ? `the adapters are ${names.join(', ')}` : 'there is no --adapter';
    throw new PluralignError('BAD_ARGUMENT', `--weights names '${name}', but ${known}`);
  }
}

export function generateCommand(load = () => import('../api/generate.js')): Command {
  const command = new Command('generate').description('sample from a model, an adapter or a mix of adapters');
  addModelOptions(command)
    .requiredOption('--prompt <text>', 'prompt')
    .option('--weights <name=w,...>', 'mix the adapters with these weights', parseWeights)
    .option('--annotator <name>', 'speak as this annotator of a run with adapters by annotator')
    .option('--seed <n>', 'seed of the first sample', integer(0), 0)
    .option('--samples <n>', 'number of samples', integer(1), 1)
    .option('--max-new-tokens <n>', 'longest sample', integer(1), 128)
    .option('--temperature <t>', '0: greedy', real(0), 1)
    .option('--top-k <k>', 'draw from the k likeliest tokens; 0: all', integer(0), 0)
    .option('--top-p <p>', 'draw from the likeliest tokens that together reach p', real(0, 1), 1)
    .action(async (options: Record<string, unknown> & Sampling & { json?: boolean }) => {
      const { prompt, weights, annotator } = options as {
        prompt?: string;
        weights?: Record<string, number>;
        annotator?: string;
      };
      const { seed, samples, maxNewTokens, temperature, topK, topP } = options;
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () => {
            const model = modelOptions(options, stop);
            checkWeights(weights, model);
            const sampling = { seed, samples, maxNewTokens, temperature, topK, topP };
            return (await load()).generateCommand({ ...model, ...sampling, prompt: prompt ?? '', weights, annotator });
          }),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(command);
}
