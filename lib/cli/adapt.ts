import { Command } from 'commander';
import type { AdaptCommandOptions } from '../api/adapt.js';
import type { AdaptResult } from '../features/adapt.js';
import { PluralignError } from '../native/errors.js';
import type { AdaptVotersResult } from '../training/adapt.js';
import { formatRecords, printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { collect } from './score.js';
import { addJsonOption, addRuntimeOptions, integer, type RuntimeOptions, real, withStop } from './shared.js';

export interface AdaptApi {
  adapt(options: AdaptCommandOptions): Promise<AdaptResult | AdaptVotersResult>;
}

interface AdaptFlags extends Partial<RuntimeOptions> {
  votes?: string[];
  annotator?: string[];
  json?: boolean;
}

function human(result: AdaptResult | AdaptVotersResult): string {
  const fitted = Object.entries(result.annotators as Record<string, { own?: number[] }>);
  const records = fitted.map(([annotator, { own: _, ...metrics }]) => ({
    annotator,
    ...metrics,
  }));
  const lines = records.length > 0 ? [formatRecords(records), ''] : [];
  for (const [annotator, questions] of Object.entries(('next' in result && result.next) || {})) {
    lines.push(`ask ${printableLine(annotator)} next:`);
    lines.push(formatRecords(questions.map(({ items: [one, other], ...rest }) => ({ one, other, ...rest }))), '');
  }
  return [...lines, `${result.population} annotators in ${printableLine(result.run)}`].join('\n');
}

export function adaptCommand(load: () => Promise<AdaptApi> = () => import('../api/adapt.js')): Command {
  const command = new Command('adapt')
    .description(
      "add annotators to a run with something of each annotator's: fits only what is theirs, leaves everyone else's be",
    )
    .requiredOption('--run <run>', 'run folder of `train`: adapters by annotator, or model: features')
    .option('--votes <rows>', 'rows with annotators: .jsonl .json .csv .parquet; may be given again', collect)
    .option(
      '--next <n>',
      'on features: the n pairs of items to ask each annotator next, by expected information',
      integer(1),
    )
    .option(
      '--annotator <name>',
      'with --next: an annotator to ask; may be given again; a new name is one with no votes',
      collect,
    )
    .option('--items <file>', "on features: another table of items than the run's")
    .option('--replace', 'fit annotators anew whom the run has already')
    .option('--steps <n>', 'with adapters: steps over all votes of an annotator (default: 20)', integer(0))
    .option('--learning-rate <rate>', "with adapters: default the run's", real(0))
    .option('--penalty <lambda>', "with adapters: pull towards the generic adapter; default the run's, or 1", real(0))
    .action(async (options: Omit<AdaptCommandOptions, 'stop' | 'note' | 'votes'> & AdaptFlags) => {
      const { run, votes = [], annotator: annotators, next, items, replace, steps, learningRate, penalty } = options;
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () => {
            const { say: note } = await import('../training/progress.js');
            if (votes.length === 0 && !(next && annotators)) {
              throw new PluralignError('BAD_ARGUMENT', 'give --votes, or --next with the --annotator to ask');
            }
            const given = { run, votes, next, annotators, items, replace, steps, learningRate, penalty };
            const { dtype, device, threads } = options;
            return (await load()).adapt({ ...given, dtype, device, threads, stop, note });
          }),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(addRuntimeOptions(command, "the run's own"));
}
