import { Command } from 'commander';
import type { AdaptCommandOptions } from '../api/adapt.js';
import type { AdaptResult } from '../features/adapt.js';
import type { AdaptVotersResult } from '../training/adapt.js';
import { formatRecords, printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { collect } from './score.js';
import { addJsonOption, integer, real, withStop } from './shared.js';

export interface AdaptApi {
  adapt(options: AdaptCommandOptions): Promise<AdaptResult | AdaptVotersResult>;
}

function human(result: AdaptResult | AdaptVotersResult): string {
  const fitted = Object.entries(result.annotators as Record<string, { own?: number[] }>);
  const records = fitted.map(([annotator, { own: _, ...metrics }]) => ({
    annotator,
    ...metrics,
  }));
  return [formatRecords(records), '', `${result.population} annotators in ${printableLine(result.run)}`].join('\n');
}

export function adaptCommand(load: () => Promise<AdaptApi> = () => import('../api/adapt.js')): Command {
  const command = new Command('adapt')
    .description(
      "add annotators to a run with something of each annotator's: fits only what is theirs, leaves everyone else's be",
    )
    .requiredOption('--run <run>', 'run folder of `train`: adapters by annotator, or model: features')
    .requiredOption('--votes <rows>', 'rows with annotators: .jsonl .json .csv .parquet; may be given again', collect)
    .option('--items <file>', "on features: another table of items than the run's")
    .option('--replace', 'fit annotators anew whom the run has already')
    .option('--steps <n>', 'with adapters: steps over all votes of an annotator (default: 20)', integer(0))
    .option('--learning-rate <rate>', "with adapters: default the run's", real(0))
    .option('--penalty <lambda>', "with adapters: pull towards the generic adapter; default the run's", real(0))
    .action(async (options: Omit<AdaptCommandOptions, 'stop' | 'note'> & { json?: boolean }) => {
      const { run, votes, items, replace, steps, learningRate, penalty } = options;
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () => {
            const note = (text: string) => void process.stderr.write(`${text}\n`);
            const given = { run, votes, items, replace, steps, learningRate, penalty };
            return (await load()).adapt({ ...given, stop, note });
          }),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(command);
}
