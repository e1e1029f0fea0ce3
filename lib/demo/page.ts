import { join } from 'node:path';
import { stringify } from 'yaml';
import { writeFileAtomic } from '../base/files.js';
import { writeReport } from '../report/index.js';
import { readMetrics } from '../training/metrics.js';
import type { DemoPlan } from './settings.js';
import type { SoupTable, StoryTable, VoterTable } from './tables.js';
import { makeAnnotators } from './votes.js';

export interface DemoPage {
  folder: string;
  plan: DemoPlan;
  /** Names of the policies, each a run in a folder of that name. */
  policies: readonly string[];
  table: VoterTable;
  stories: StoryTable;
  soup: SoupTable;
  seconds: number;
}

/** Metrics that the page draws a line of for every policy. */
const drawn = ['loss', 'rewards/accuracies', 'rewards/margins'];

/** The runs' logs side by side: one object per step, keys `POLICY/METRIC`. */
async function mergedMetrics(folder: string, policies: readonly string[]): Promise<Record<string, number>[]> {
  const steps = new Map<number, Record<string, number>>();
  for (const policy of policies) {
    for (const record of await readMetrics(join(folder, policy, 'metrics.jsonl'))) {
      const row = steps.get(record.step) ?? { step: record.step };
      for (const key of drawn) {
        const value = record[key];
        if (typeof value === 'number') row[`${policy}/${key}`] = value;
      }
      steps.set(record.step, row);
    }
  }
  return [...steps.values()].sort((a, b) => a.step - b.step);
}

/** Writes the demo's own config.yaml, metrics.jsonl, summary.json and report.html, from the runs inside the folder. */
export async function writeDemoReport(page: DemoPage): Promise<string> {
  const { folder, plan, policies, table, stories, soup, seconds } = page;
  const metrics = await mergedMetrics(folder, policies);
  const write = (name: string, text: string) => writeFileAtomic(join(folder, name), text);
  await write('metrics.jsonl', metrics.map((row) => `${JSON.stringify(row)}\n`).join(''));
  await write('config.yaml', stringify({ demo: plan, annotators: makeAnnotators() }));
  const votes = plan.heldVotes;
  const annotators = (column: 'base' | 'own group') =>
    Object.fromEntries(table.voters.map((row) => [row.annotator, { rows: votes, accuracy: row[column] }]));
  const all = table.groups[table.groups.length - 1];
  const rows = votes * table.voters.length;
  const summary = {
    method: 'dpo, a policy for each group and one for everyone',
    steps: metrics.length,
    seconds,
    eval_before: { overall: { rows, accuracy: all.base }, annotators: annotators('base') },
    eval: {
      overall: { rows, accuracy: all['own group'] },
      annotators: annotators('own group'),
      'annotator and policy': Object.fromEntries(
        [...table.voters, ...table.groups].map((row) => [
          row.annotator === 'mean' ? `mean of ${row.group}` : `${row.annotator} (${row.group})`,
          {
            'base accuracy': row.base,
            "own group's policy: accuracy": row['own group'],
            "everyone's policy: accuracy": row.everyone,
          },
        ]),
      ),
      'policy: new stories against those of the base': Object.fromEntries(
        stories.rows.map(({ policy, ...values }) => [policy, values]),
      ),
      'expert and soup: what new stories are worth to each wish': Object.fromEntries(
        soup.rows.map(({ policy, ...values }) => [policy, values]),
      ),
    },
    data: { annotators: table.voters.length, votes_of_each: plan.votes, held_out_votes_of_each: votes },
    samples: [...stories.samples.slice(0, 6), ...soup.samples.slice(0, 4)],
    paths: { run: folder, ...Object.fromEntries(policies.map((name) => [name, join(folder, name)])) },
  };
  await write('summary.json', `${JSON.stringify(summary, null, 2)}\n`);
  return writeReport(folder);
}
