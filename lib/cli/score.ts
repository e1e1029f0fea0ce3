import { Command } from 'commander';
import { PluralignError } from '../native/errors.js';
import { formatNumber, formatTable, printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { addJsonOption, addModelOptions, alphaOf, type ModelOptions, modelOptions, real, withStop } from './shared.js';

export interface ScoreCommandOptions extends ModelOptions {
  data: string[];
  /** Runs on features: also rewards less this many standard deviations of the voter's posterior. */
  lower?: number;
  /** Runs on features: also the reward for all voters together, Agg_α. */
  alpha?: number;
  /** With alpha: files of `annotator`, `weight` and `group`. */
  voters?: string[];
  equalGroups?: boolean;
}

interface ScoreFlags extends Pick<ScoreCommandOptions, 'data' | 'lower' | 'alpha' | 'voters' | 'equalGroups'> {
  json?: boolean;
}

/** The object of `score --json`: per row, by policy, one number per completion in row order. */
export interface ScoreResult {
  policies: string[];
  rows: { logps?: Record<string, ArrayLike<number>>; rewards?: Record<string, ArrayLike<number>> }[];
}

export interface ScoreApi {
  scoreCommand(options: ScoreCommandOptions): Promise<ScoreResult>;
}

function human(result: ScoreResult): string {
  const lines: string[][] = [];
  for (const [index, row] of result.rows.entries()) {
    for (const kind of ['logps', 'rewards'] as const) {
      for (const [policy, values] of Object.entries(row[kind] ?? {})) {
        lines.push([String(index), printableLine(policy), kind, ...Array.from(values, formatNumber)]);
      }
    }
  }
  const completions = Math.max(0, ...lines.map((line) => line.length - 3));
  return formatTable(['row', 'policy', 'kind', ...Array.from({ length: completions }, (_, c) => `${c}`)], lines);
}

export function scoreCommand(load = () => import('../api/score.js')): Command {
  const command = new Command('score').description(
    'log-probability (or reward) of every completion under the base and each adapter',
  );
  addModelOptions(command)
    .requiredOption('--data <rows>', 'rows: .jsonl .json .csv .parquet; may be given several times', collect)
    .option(
      '--lower <z>',
      'on features: also the reward less z standard deviations of what the votes leave open',
      real(0),
    )
    .option(
      '--alpha <a>',
      'on features: also one reward of all voters, from their mean (0) to their least (-inf)',
      alphaOf,
    )
    .option(
      '--voters <rows>',
      'with --alpha: rows of annotator with weight, and group to count by groups; others count nothing',
      collect,
    )
    .option('--equal-groups', 'with --voters: every group counts alike')
    .action(async (options: Record<string, unknown> & ScoreFlags) => {
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () => {
            const { alpha, voters, equalGroups } = options;
            if ((voters || equalGroups) && alpha === undefined)
              throw new PluralignError(
                'BAD_ARGUMENT',
                '--voters and --equal-groups say who counts in --alpha: give it too',
              );
            if (equalGroups && !voters)
              throw new PluralignError('BAD_ARGUMENT', '--equal-groups needs --voters with a group on each row');
            const checked = {
              ...modelOptions(options, stop),
              data: options.data,
              lower: options.lower,
              alpha,
              voters,
              equalGroups,
            };
            return (await load()).scoreCommand(checked);
          }),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(command);
}

export function collect(text: string, before?: string[]): string[] {
  return [...(before ?? []), text];
}
