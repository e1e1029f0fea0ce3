import { Command, InvalidArgumentError } from 'commander';
import type { StopRequest } from '../training/signals.js';
import { formatMetrics, formatRecords, printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { addJsonOption, addRuntimeOptions, withStop } from './shared.js';

export interface TrainCommandOptions {
  /** `key.path=value`, applied to the configuration in order; values are YAML. */
  set: string[];
  output?: string;
  resume: boolean;
  stop: StopRequest;
}

/** The object of `train --json`. */
export interface TrainResult {
  method: string;
  steps: number;
  train: Record<string, number>;
  eval?: { overall?: Record<string, unknown>; [section: string]: unknown };
  paths: { run: string; adapter?: string };
}

export interface TrainApi {
  train(config: string, options: TrainCommandOptions): Promise<TrainResult>;
}

function collectSet(text: string, before: string[]): string[] {
  if (!/^[^=\s]+=/.test(text)) throw new InvalidArgumentError('Expected key.path=value.');
  return [...before, text];
}

function human(result: TrainResult): string {
  // Types that were stopped have no steps of a kept fit yet.
  const begun = result.steps > 0 || Object.keys(result.train).length > 0;
  const lines = [`${result.method}: ${begun ? `${result.steps} steps` : 'not finished'}`];
  if (begun) lines.push(`  train  ${formatMetrics(result.train)}`);
  const overall = result.eval?.overall;
  if (overall) lines.push(`  eval   ${formatMetrics(overall)}`);
  const annotators = result.eval?.annotators as Record<string, Record<string, unknown>> | undefined;
  const names = Object.entries(annotators ?? {});
  if (names.length > 1 && names.length <= 20) {
    lines.push('', formatRecords(names.map(([annotator, m]) => ({ annotator, ...m }))), '');
  }
  const width = Math.max(...Object.keys(result.paths).map((name) => name.length));
  for (const [name, path] of Object.entries(result.paths))
    lines.push(`  ${name.padEnd(width)}  ${printableLine(path)}`);
  return lines.join('\n');
}

export function trainCommand(load = () => import('../api/train.js')): Command {
  const command = new Command('train')
    .description('run a method from a configuration')
    .argument('<config.yaml>', 'configuration')
    .option('--set <key.path=value>', 'override a key of the configuration; may be given several times', collectSet, [])
    .option('--output <dir>', "run folder, in place of the configuration's")
    .option('--resume', 'go on from the newest valid checkpoint in the run folder')
    .action(async (config: string, options: Record<string, unknown> & { set: string[]; json?: boolean }) => {
      const set = [...options.set];
      for (const key of ['dtype', 'device', 'threads']) {
        if (options[key] !== undefined) set.push(`train.${key}=${options[key]}`);
      }
      const { output, resume } = options as { output?: string; resume?: boolean };
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () =>
            (await load()).train(config, { set, output, resume: resume ?? false, stop }),
          ),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(addRuntimeOptions(command, "the configuration's"));
}
