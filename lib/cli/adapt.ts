import { Command } from 'commander';
import type { AdaptResult } from '../features/adapt.js';
import { formatRecords, printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { collect } from './score.js';
import { addJsonOption, withStop } from './shared.js';

export interface AdaptApi {
  adapt(options: {
    run: string;
    votes: string[];
    items?: string;
    replace?: boolean;
    signal: AbortSignal;
    note: (text: string) => void;
  }): Promise<AdaptResult>;
}

function human(result: AdaptResult): string {
  const records = Object.entries(result.annotators).map(([annotator, { own: _, ...metrics }]) => ({
    annotator,
    ...metrics,
  }));
  return [formatRecords(records), '', `${result.population} annotators in ${printableLine(result.run)}`].join('\n');
}

export function adaptCommand(load: () => Promise<AdaptApi> = () => import('../features/adapt.js')): Command {
  const command = new Command('adapt')
    .description("add annotators to a run of rewards on features: fits only what is theirs, leaves everyone else's be")
    .requiredOption('--run <run>', 'run folder of `train` with model: features')
    .requiredOption('--votes <rows>', 'rows that name items: .jsonl .json .csv .parquet; may be given again', collect)
    .option('--items <file>', "another table of items than the run's")
    .option('--replace', 'fit annotators anew whom the run has already')
    .action(async (options: { run: string; votes: string[]; items?: string; replace?: boolean; json?: boolean }) => {
      const { run, votes, items, replace } = options;
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () => {
            const note = (text: string) => void process.stderr.write(`${text}\n`);
            return (await load()).adapt({ run, votes, items, replace, signal: stop.signal, note });
          }),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(command);
}
