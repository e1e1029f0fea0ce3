import { Command, Option } from 'commander';
import type { EmbedOptions, EmbedResult } from '../features/embed.js';
import { printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { collect } from './score.js';
import { addJsonOption, addRuntimeOptions, runtimeOptions, withStop } from './shared.js';

export interface EmbedApi {
  embed(options: EmbedOptions): Promise<EmbedResult>;
}

function human({ items, features, pooling, paths }: EmbedResult): string {
  return `${items} items, ${features} features each (${pooling}): ${printableLine(paths.items)}`;
}

type Given = { model: string; data: string[]; output: string; pooling: 'last' | 'mean'; json?: boolean };

export function embedCommand(load: () => Promise<EmbedApi> = () => import('../features/embed.js')): Command {
  const command = new Command('embed')
    .description('features of items: the final hidden rows of a language model, one row for each item')
    .requiredOption('--model <dir>', 'Hugging Face model folder, or hf:owner/name')
    .requiredOption('--data <items>', 'items with id and text, messages, or prompt and completion', collect)
    .requiredOption('--output <file>', 'table of items to write, .safetensors')
    .addOption(
      new Option('--pooling <how>', 'row of the last token, or the mean of all')
        .choices(['last', 'mean'])
        .default('last'),
    )
    .action(async (options: Given & Record<string, unknown>) => {
      const { model, data, output, pooling } = options;
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () =>
            (await load()).embed({ model, data, output, pooling, stop, ...runtimeOptions(options) }),
          ),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(addRuntimeOptions(command));
}
