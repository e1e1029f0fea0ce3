import { Command } from 'commander';
import { formatNumber, formatTable, printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { addJsonOption, addModelOptions, alphaOf, type ModelOptions, modelOptions, real, withStop } from './shared.js';

export interface ScoreCommandOptions extends ModelOptions {
  data: string[];
  /** Runs on features: also rewards less this many standard deviations of the voter's posterior. */
  lower?: number;
  /** Runs on features: also the reward for all voters together, Agg_α. */
  alpha?: number;
}

interface ScoreFlags {
  data: string[];
  lower?: number;
  alpha?: number;
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
    .action(async (options: Record<string, unknown> & ScoreFlags) => {
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () => {
            const checked = {
              ...modelOptions(options, stop),
              data: options.data,
              lower: options.lower,
              alpha: options.alpha,
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
