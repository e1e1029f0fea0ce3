import { Command, InvalidArgumentError, Option } from 'commander';
import type { GenerateOptions, GenerateResult } from '../api/generate.js';
import { PluralignError } from '../native/errors.js';
import { printable, printableLine } from './format.js';
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

/** What the command passes to the API. */
export type GenerateCommandOptions = ModelOptions & GenerateOptions;

export type { GenerateResult };

export interface GenerateApi {
  generateCommand(options: GenerateCommandOptions): Promise<GenerateResult>;
}

function human(result: GenerateResult): string {
  const { samples, prompts } = result;
  if (samples.length === 1) return samples[0].text;
  const title = (s: GenerateResult['samples'][number]) =>
    [printableLine(s.policy), ...(prompts ? [JSON.stringify(prompts[s.prompt!])] : []), `seed ${s.seed}`].join(', ');
  return samples.map((s) => `--- ${title(s)}\n${s.text}`).join('\n');
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

const collect = (text: string, before: string[] = []) => [...before, text];

function stopText(text: string, before: string[] = []): string[] {
  if (text === '') throw new InvalidArgumentError('Expected a text that is not empty.');
  return [...before, text];
}

type Parsed = Record<string, unknown> &
  Omit<GenerateOptions, 'prompt' | 'stopTexts' | 'weights'> & {
    prompt?: string[];
    stop?: string[];
    weights?: Record<string, number>;
    memory?: number;
    annotator?: string[];
    stream?: boolean;
    json?: boolean;
  };

export function generateCommand(load = () => import('../api/generate.js')): Command {
  const command = new Command('generate').description('sample from a model, an adapter or a mix of adapters');
  addModelOptions(command)
    .requiredOption('--prompt <text>', 'prompt; may be given several times', collect)
    .option('--chat', "each prompt is what a user says, and goes through the model's chat template")
    .option('--weights <name=w,...>', 'mix the adapters with these weights', parseWeights)
    .addOption(
      new Option('--mix <how>', 'what --weights mix: updates of weights, or next-token distributions')
        .choices(['updates', 'reverse-kl', 'forward-kl', 'alpha'])
        .default('updates'),
    )
    .option('--mix-alpha <a>', 'α of --mix alpha (default: 1)', real(Number.NEGATIVE_INFINITY))
    .option('--annotator <name>', 'speak as this annotator of a --run; may be given several times', collect)
    .option('--seed <n>', 'seed of the first sample', integer(0), 0)
    .option('--samples <n>', 'number of samples', integer(1), 1)
    .option('--max-new-tokens <n>', 'longest sample', integer(1), 128)
    .option('--temperature <t>', '0: greedy', real(0), 1)
    .option('--top-k <k>', 'draw from the k likeliest tokens; 0: all', integer(0), 0)
    .option('--top-p <p>', 'draw from the likeliest tokens that together reach p', real(0, 1), 1)
    .option('--min-p <p>', "draw from tokens of at least this share of the likeliest one's probability", real(0, 1))
    .option('--repetition-penalty <x>', 'divides the logits of tokens that were there before', real(0))
    .option('--stop <text>', 'ends a sample, and is no part of it; may be given several times', stopText)
    .option('--batch <n>', 'sequences at a time (default: 128)', integer(1))
    .option('--memory <gb>', 'for keys and values (default: 80 % of what is free)', real(0))
    .option('--logps', 'with --json: token ids, their log-probabilities, and why each sample ended')
    .option('--base-logps', 'the same, and log-probabilities under the base')
    .option('--stream', 'print the text as it comes (one sample)')
    .action(async (options: Parsed) => {
      const { prompt = [], weights, annotator: annotators, stop: stopTexts, memory, stream } = options;
      const { seed, samples, maxNewTokens, temperature, topK, topP } = options;
      const more = ['minP', 'repetitionPenalty', 'batch', 'mixAlpha', 'logps', 'baseLogps', 'chat'] as const;
      const given = Object.fromEntries(
        more.flatMap((key) => (options[key] === undefined ? [] : [[key, options[key]]])),
      );
      let streamed = false;
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () => {
            const model = modelOptions(options, stop);
            checkWeights(weights, model);
            if (
              stream &&
              (options.json ||
                prompt.length > 1 ||
                (samples ?? 1) > 1 ||
                (model.adapters.length > 1 && !weights) ||
                (annotators?.length ?? 1) > 1)
            )
              throw new PluralignError(
                'BAD_ARGUMENT',
                '--stream prints one sample: leave out --json, --samples and more prompts or adapters',
              );
            const onText = stream
              ? (_: number, text: string) => {
                  streamed = true;
                  process.stdout.write(printable(text));
                }
              : undefined;
            return (await load()).generateCommand({
              ...model,
              ...{ seed, samples, maxNewTokens, temperature, topK, topP, weights },
              ...given,
              ...(options.mix === 'updates' ? {} : { mix: options.mix }),
              ...(stopTexts ? { stopTexts } : {}),
              ...(annotators ? { annotators } : {}),
              ...(memory === undefined ? {} : { memory: memory * 1e9 }),
              ...(onText ? { onText } : {}),
              prompt: prompt.length === 1 ? prompt[0] : prompt,
            });
          }),
        (result) => {
          if (streamed) process.stdout.write('\n');
          else emit(options, result, human);
        },
      );
    });
  return addJsonOption(command);
}
