import { Command } from 'commander';
import type { DemoOptions, DemoResult } from '../demo/types.js';
import { formatRecords, printableLine } from './format.js';
import { emit, withQuietStdout } from './output.js';
import { addJsonOption, addRuntimeOptions, runtimeOptions, withStop } from './shared.js';

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
