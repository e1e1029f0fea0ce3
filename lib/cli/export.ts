import { Command } from 'commander';
import type { ExportResult } from '../api/export.js';
import { printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { collect } from './score.js';
import { addJsonOption, withStop } from './shared.js';

export interface ExportApi {
  exportCommand(options: { run: string; annotators: string[]; output: string }): Promise<ExportResult>;
}

const human = ({ adapters }: ExportResult) =>
  Object.entries(adapters)
    .map(([name, dir]) => `${printableLine(name)}: ${printableLine(dir)}`)
    .join('\n');

export function exportCommand(load: () => Promise<ExportApi> = () => import('../api/export.js')): Command {
  const command = new Command('export')
    .description("annotators' adapters of a run as PEFT files that any PEFT program loads")
    .requiredOption('--run <run>', 'run folder of `train` with adapters by annotator')
    .requiredOption('--annotator <name>', 'whose adapter; may be given several times', collect)
    .requiredOption('--output <dir>', 'folder to write; with several annotators a folder in it for each')
    .action(async (options: { run: string; annotator: string[]; output: string; json?: boolean }) => {
      const { run, annotator, output } = options;
      await withStop(
        () =>
          withQuietStdout(options.json, async () =>
            (await load()).exportCommand({ run, annotators: annotator, output }),
          ),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(command);
}
