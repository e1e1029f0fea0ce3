import { Command } from 'commander';
import type { StopRequest } from '../training/signals.js';
import { formatRecords, printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import {
  addJsonOption,
  addRuntimeOptions,
  implementation,
  type RuntimeOptions,
  runtimeOptions,
  withStop,
} from './shared.js';

export interface DemoOptions extends RuntimeOptions {
  stop: StopRequest;
}

/** The object of `demo --json`. */
export interface DemoResult {
  /** Rows of the closing table, flat: an annotator and its accuracy under each policy. */
  table: Record<string, string | number>[];
  samples: { prompt: string; before: string; after: string }[];
  seconds: number;
  paths: { run: string; report: string };
}

export interface DemoApi {
  demo(options: DemoOptions): Promise<DemoResult>;
}

function human(result: DemoResult): string {
  const lines = [formatRecords(result.table)];
  for (const { prompt, before, after } of result.samples) {
    lines.push(
      '',
      `prompt  ${printableLine(prompt)}`,
      `before  ${printableLine(before)}`,
      `after   ${printableLine(after)}`,
    );
  }
  lines.push('', `report  ${printableLine(result.paths.report)}  (${result.seconds.toFixed(0)} s)`);
  return lines.join('\n');
}

export function demoCommand(load = () => implementation<DemoApi>('../demo/index.js')): Command {
  const command = new Command('demo')
    .description('the whole idea in about a minute, on embedded data')
    .action(async (options: Record<string, unknown> & { json?: boolean }) => {
      await withStop(
        (stop) => withQuietStdout(options.json, async () => (await load()).demo({ ...runtimeOptions(options), stop })),
        (result) => emit(options, result, human),
      );
    });
  return addJsonOption(addRuntimeOptions(command));
}
