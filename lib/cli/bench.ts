import { Argument, Command } from 'commander';
import type { StopRequest } from '../training/signals.js';
import { formatRecords } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { addJsonOption, addRuntimeOptions, type RuntimeOptions, runtimeOptions, withStop } from './shared.js';

export type BenchSubject = 'ops' | 'train';

export interface BenchCommandOptions extends RuntimeOptions {
  stop: StopRequest;
  /** `train`: also a large shape, which takes minutes. */
  large?: boolean;
  /** `train`: cost curves in place of throughput. */
  curves?: boolean;
}

/** The object of `bench --json`; every result is flat and names what was timed, its shape and its unit. */
export interface BenchResult {
  subject: BenchSubject;
  results: Record<string, string | number>[];
}

export interface BenchApi {
  bench(subject: BenchSubject, options: BenchCommandOptions): Promise<BenchResult>;
}

export function benchCommand(load: () => Promise<BenchApi> = () => import('../api/bench.js')): Command {
  const command = new Command('bench')
    .description('micro-benchmarks of the operators, or training throughput')
    .addArgument(new Argument('<subject>', 'what to time').choices(['ops', 'train']))
    .option('--large', 'train: also the shape of a 135M-parameter model (minutes)')
    .option('--curves', 'train: cost of a token against tokens of the pass, context, adapters, rank, threads')
    .action(
      async (
        subject: BenchSubject,
        options: Record<string, unknown> & { json?: boolean; large?: boolean; curves?: boolean },
      ) => {
        await withStop(
          (stop) =>
            withQuietStdout(options.json, async () =>
              (await load()).bench(subject, {
                ...runtimeOptions(options),
                large: options.large,
                curves: options.curves,
                stop,
              }),
            ),
          (result) => emit(options, result, ({ results }) => formatRecords(results)),
        );
      },
    );
  return addJsonOption(addRuntimeOptions(command));
}
