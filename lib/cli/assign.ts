import { Command } from 'commander';
import { emit } from './output.js';
import { collect } from './score.js';
import { addJsonOption, addRuntimeOptions, runtimeOptions, withStop } from './shared.js';

interface Options {
  run: string;
  votes: string[];
  output?: string;
  json?: boolean;
}

export function assignCommand(): Command {
  const command = new Command('assign')
    .description('give new annotators their types, by their votes')
    .requiredOption('--run <run>', 'run folder of em-dpo or em-reward')
    .requiredOption('--votes <rows>', 'rows: .jsonl .json .csv .parquet; may be given several times', collect)
    .option('--output <file>', 'write responsibilities as CSV')
    .action(async (options: Options) => {
      await withStop(
        async (stop) => {
          const { assignVotes } = await import('../em/run.js');
          const { run, votes: data } = options;
          const { say: note } = await import('../training/progress.js');
          const lines = await assignVotes({ ...runtimeOptions({ ...options }), run, data, stop, note });
          if (options.output !== undefined) {
            const { writeResponsibilities } = await import('../em/files.js');
            await writeResponsibilities(options.output, lines);
          }
          const { likeliest } = await import('../em/outcome.js');
          return {
            annotators: Object.fromEntries(
              lines.map(({ annotator, probabilities, votes }) => {
                const type = likeliest(probabilities);
                return [annotator, { type: type + 1, probabilities, votes, certainty: probabilities[type] }];
              }),
            ),
          };
        },
        (result) =>
          emit(options, result, ({ annotators }) =>
            Object.entries(annotators)
              .map(([name, a]) => `${name}  type ${a.type}  certainty ${a.certainty.toFixed(3)}  votes ${a.votes}`)
              .join('\n'),
          ),
      );
    });
  return addJsonOption(addRuntimeOptions(command));
}
