import { Command, Option } from 'commander';
import { formatMetrics, formatRecords } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { collect } from './score.js';
import { addJsonOption, addModelOptions, type ModelOptions, modelOptions, withStop } from './shared.js';

export interface EvalCommandOptions extends ModelOptions {
  data: string[];
  by?: 'annotator';
}

type Metrics = Record<string, unknown>;

/** The object of `eval --json`. */
export interface EvalResult {
  overall: Metrics;
  annotators?: Record<string, Metrics>;
  [section: string]: unknown;
}

export interface EvalApi {
  evalCommand(options: EvalCommandOptions): Promise<EvalResult>;
}

function human(result: EvalResult): string {
  const lines = [formatMetrics(result.overall)];
  const accuracy = (m: Metrics) => (typeof m.accuracy === 'number' ? m.accuracy : Number.POSITIVE_INFINITY);
  const annotators = Object.entries(result.annotators ?? {}).sort(([, a], [, b]) => accuracy(a) - accuracy(b));
  if (annotators.length > 0) {
    lines.push(
      '',
      'per annotator, worst first',
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
    .action(async (options: Record<string, unknown> & { data: string[]; by?: 'annotator'; json?: boolean }) => {
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () => {
            const checked = { ...modelOptions(options, stop), data: options.data, by: options.by };
            return (await load()).evalCommand(checked);
          }),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(command);
}
