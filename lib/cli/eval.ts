import { Command, InvalidArgumentError, Option } from 'commander';
import type { Comparison } from '../evaluation/compare.js';
import { byWorst } from '../evaluation/wilson.js';
import { PluralignError } from '../native/errors.js';
import { formatMetrics, formatNumber, formatRecords, printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { collect } from './score.js';
import { addJsonOption, addModelOptions, type ModelOptions, modelOptions, withStop } from './shared.js';

export interface EvalCommandOptions extends ModelOptions {
  data: string[];
  by?: 'annotator';
  /** A run, an adapter folder or a policy of the same evaluation. */
  compare?: string;
  /** The two trained with other seeds. */
  again?: { run: string; other: string }[];
}

type Flags = Pick<EvalCommandOptions, 'data' | 'by' | 'compare' | 'again'> & { json?: boolean };

type Metrics = Record<string, unknown>;

/** The object of `eval --json`. */
export interface EvalResult {
  overall: Metrics;
  annotators?: Record<string, Metrics>;
  comparison?: Comparison & { with: string };
  [section: string]: unknown;
}

export interface EvalApi {
  evalCommand(options: EvalCommandOptions): Promise<EvalResult>;
}

function compared({ with: other, seeds, voters, accuracy, log_likelihood }: Comparison & { with: string }): string {
  const show = (name: string, { mean, low, high }: Comparison['accuracy']) =>
    `${name} ${formatNumber(mean)} [${formatNumber(low)}, ${formatNumber(high)}]`;
  const differences = [show('accuracy', accuracy)];
  if (log_likelihood) differences.push(show('log_likelihood', log_likelihood));
  const over = `${voters} voters${seeds > 1 ? ` of ${seeds} seeds` : ''}, 95 % bootstrap`;
  return `beside ${printableLine(other)}, mean over ${over}\n${differences.join('  ')}`;
}

function collectAgain(text: string, before: { run: string; other: string }[] = []): { run: string; other: string }[] {
  const at = text.indexOf('=');
  const [run, other] = [text.slice(0, at), text.slice(at + 1)];
  if (at < 1 || other === '') throw new InvalidArgumentError('Expected RUN=OTHER.');
  return [...before, { run, other }];
}

function human(result: EvalResult): string {
  const lines = [formatMetrics(result.overall)];
  if (result.comparison) lines.push('', compared(result.comparison));
  const annotators = Object.entries(result.annotators ?? {}).sort(([, a], [, b]) => byWorst(a, b));
  if (annotators.length > 0) {
    lines.push(
      '',
      'per annotator, worst first (by the upper end of a 95 % interval: one vote says little)',
      formatRecords(annotators.map(([annotator, m]) => ({ annotator, ...m }))),
    );
  }
  return lines.join('\n');
}

export function evalCommand(load = () => import('../api/eval.js')): Command {
  const command = new Command('eval').description('accuracy, margin and calibration: overall, worst, per annotator');
  addModelOptions(command)
    .requiredOption('--data <rows>', 'rows: .jsonl .json .csv .parquet; may be given several times', collect)
    .addOption(new Option('--by <field>', 'print a line for each').choices(['annotator']))
    .option(
      '--compare <other>',
      'difference to another run, an adapter folder or `generic`, paired by voter, with intervals',
    )
    .option('--again <run=other>', 'with --compare: the two by another seed; may be given several times', collectAgain)
    .action(async (options: Record<string, unknown> & Flags) => {
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () => {
            const { data, by, compare, again } = options;
            if (again && compare === undefined)
              throw new PluralignError('BAD_ARGUMENT', '--again needs --compare: the pair of the first seed');
            const checked = { ...modelOptions(options, stop), data, by, compare, again };
            return (await load()).evalCommand(checked);
          }),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(command);
}
