import { Argument, Command } from 'commander';
import type { StopRequest } from '../training/signals.js';
import { formatRecords } from './format.js';
import { emit, withQuietStdout } from './output.js';
import {
  addJsonOption,
  addRuntimeOptions,
  implementation,
  type RuntimeOptions,
  runtimeOptions,
  withStop,
} from './shared.js';

export type BenchSubject = 'ops' | 'train';

export interface BenchCommandOptions extends RuntimeOptions {
  stop: StopRequest;
}

/** The object of `bench --json`; every result is flat and names what was timed, its shape and its unit. */
export interface BenchResult {
  subject: BenchSubject;
  results: Record<string, string | number>[];
}

export interface BenchApi {
  bench(subject: BenchSubject, options: BenchCommandOptions): Promise<BenchResult>;
}

export function benchCommand(load = () => implementation<BenchApi>('../api/bench.js')): Command {
  const command = new Command('bench')
    .description('micro-benchmarks of the operators, or training throughput')
    .addArgument(new Argument('<subject>', 'what to time').choices(['ops', 'train']))
    .action(async (subject: BenchSubject, options: Record<string, unknown> & { json?: boolean }) => {
      await withStop(
        (stop) =>
          withQuietStdout(options.json, async () =>
            (await load()).bench(subject, { ...runtimeOptions(options), stop }),
          ),
        (result) => emit(options, result, ({ results }) => formatRecords(results)),
      );
    });
  return addJsonOption(addRuntimeOptions(command));
}
