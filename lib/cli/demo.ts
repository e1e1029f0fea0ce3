import { Command } from 'commander';
import type { StopRequest } from '../training/signals.js';
import { formatRecords, printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { addJsonOption, addRuntimeOptions, type RuntimeOptions, runtimeOptions, withStop } from './shared.js';

export interface DemoOptions extends RuntimeOptions {
  stop: StopRequest;
}

/** The object of `demo --json`. Shares are between 0 and 1. */
export interface DemoResult {
  /** One row for each annotator, then means: accuracy on held-out votes under each policy. */
  table: Record<string, string | number>[];
  /** One row for each policy: what the stories that it writes now are like, and who likes them. */
  stories: Record<string, string | number>[];
  /** The same prompt under every policy, by the policy's name. */
  samples: ({ prompt: string } & Record<string, string>)[];
  /** What stories of the experts for two wishes, and of their mix, are worth to each wish, in [−1, 1]. */
  soup: Record<string, string | number>[];
  soup_samples: ({ prompt: string } & Record<string, string>)[];
  seconds: number;
  paths: { run: string; report: string };
}

export interface DemoApi {
  demo(options: DemoOptions): Promise<DemoResult>;
}

/** Shares as percentages; other values as they are. */
function percentages(records: Record<string, string | number>[], isShare: (column: string) => boolean) {
  const show = ([column, value]: [string, string | number]) => [
    column,
    typeof value === 'number' && isShare(column) ? `${(100 * value).toFixed(0)} %` : value,
  ];
  return records.map((record) => Object.fromEntries(Object.entries(record).map(show)));
}

function sideBySide({ prompt, ...texts }: DemoResult['samples'][number]): string[] {
  const width = Math.max(...Object.keys(texts).map((name) => name.length), 6) + 2;
  const line = (name: string, text: string) => `${printableLine(name).padEnd(width)}${printableLine(text)}`;
  return ['', line('prompt', prompt), ...Object.entries(texts).map(([name, text]) => line(name, text))];
}

function human(result: DemoResult): string {
  const lines = [
    'Accuracy on held-out votes: before training, after DPO on the votes of the own group, after DPO on all votes',
    formatRecords(percentages(result.table, () => true)),
    '',
    "New stories: how cheerful (-1 to 1), and how often each group likes them better than the base's",
    formatRecords(percentages(result.stories, (column) => column !== 'cheerfulness')),
  ];
  lines.push(...result.samples.flatMap(sideBySide));
  lines.push(
    '',
    'A soup: an expert for each of two wishes, and both mixed half and half without training.',
    'New stories: what they are worth to each wish (-1 to 1), and to somebody who has both',
    formatRecords(result.soup),
    ...result.soup_samples.flatMap(sideBySide),
  );
  lines.push('', `report  ${printableLine(result.paths.report)}  (${result.seconds.toFixed(0)} s)`);
  return lines.join('\n');
}

export function demoCommand(load = () => import('../demo/index.js')): Command {
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
