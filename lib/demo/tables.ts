import { winRate } from './policies.js';
import { cheerfulness, wordiness } from './tastes.js';
import { type Annotator, groups, makeAnnotators } from './votes.js';

/** Shares between 0 and 1, by annotator and by group. */
export interface VoterRow extends Record<string, string | number> {
  annotator: string;
  group: string;
  /** Shares of held-out votes ordered as the annotator did. */
  base: number;
  'own group': number;
  everyone: number;
}

export interface VoterTable {
  voters: VoterRow[];
  /** Means of each group and of all. */
  groups: VoterRow[];
}

const round = (value: number) => Math.round(value * 1000) / 1000;
const mean = (values: readonly number[]) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);

/** Accuracy of every annotator's held-out votes: the base, the policy of the annotator's group, the policy for everyone. */
export function voterTable(
  annotators: readonly Annotator[],
  before: ReadonlyMap<string, number>,
  after: ReadonlyMap<string, ReadonlyMap<string, number>>,
): VoterTable {
  const voters = annotators.map(({ name, group }) => ({
    annotator: name,
    group,
    base: before.get(name) ?? 0,
    'own group': after.get(group)?.get(name) ?? 0,
    everyone: after.get('everyone')?.get(name) ?? 0,
  }));
  const average = (annotator: string, group: string, rows: readonly VoterRow[]): VoterRow => ({
    annotator,
    group,
    base: mean(rows.map((row) => row.base)),
    'own group': mean(rows.map((row) => row['own group'])),
    everyone: mean(rows.map((row) => row.everyone)),
  });
  const rounded = (row: VoterRow): VoterRow => ({
    ...row,
    base: round(row.base),
    'own group': round(row['own group']),
    everyone: round(row.everyone),
  });
  return {
    voters: voters.map(rounded),
    groups: [
      ...groups.map((group) =>
        average(
          'mean',
          group,
          voters.filter((row) => row.group === group),
        ),
      ),
      average('mean', 'all', voters),
    ].map(rounded),
  };
}

/** What a policy writes now. */
export interface StoryRow extends Record<string, string | number> {
  policy: string;
  /** Mean cheerfulness of new endings, in [−1, 1]. */
  cheerfulness: number;
}

export interface StoryTable {
  rows: StoryRow[];
  /** The same prompt under every policy. */
  samples: ({ prompt: string } & Record<string, string>)[];
}

/**
 * Cheerfulness of each policy's stories, and for each group how often its members like them better than the base's story for
 * the same prompt (mean over members, a tie being half a win). Stories that came to no end count as they stand, empty.
 */
export function storyTable(
  prompts: readonly string[],
  names: readonly string[],
  told: readonly (readonly (string | null)[])[],
): StoryTable {
  const texts = told.map((endings) => endings.map((ending) => ending ?? ''));
  const members = makeAnnotators();
  const rows = names.map((policy, i) => {
    const row: StoryRow = { policy, cheerfulness: round(mean(texts[i].map(cheerfulness))) };
    for (const group of groups) {
      const rates = members.filter((a) => a.group === group).map((a) => winRate(a.taste, texts[i], texts[0]));
      row[`${group}_win_rate`] = round(mean(rates));
    }
    return row;
  });
  return { rows, samples: sideBySide(prompts, names, texts) };
}

const sideBySide = (prompts: readonly string[], names: readonly string[], texts: readonly (readonly string[])[]) =>
  prompts.map((prompt, p) => ({ prompt, ...Object.fromEntries(names.map((name, i) => [name, texts[i][p].trim()])) }));

/** The wishes that experts are trained for, and what each makes of a text, in [−1, 1]. */
export const wishes: Readonly<Record<string, (text: string) => number>> = { cheerful: cheerfulness, ornate: wordiness };

/** What the experts for wishes write, and their mix. */
export interface SoupTable {
  /** By policy: what its stories are worth to each wish, and to somebody who has all of them, on average. */
  rows: (Record<string, string | number> & { policy: string })[];
  /** The same prompt under every policy. */
  samples: ({ prompt: string } & Record<string, string>)[];
}

/** Stories of each policy for the same prompts, as each wish values them. Those that came to no end are empty. */
export function soupTable(
  prompts: readonly string[],
  names: readonly string[],
  told: readonly (readonly (string | null)[])[],
): SoupTable {
  const texts = told.map((endings) => endings.map((ending) => ending ?? ''));
  const rows = names.map((policy, i) => {
    const worth = Object.entries(wishes).map(([wish, measure]) => [wish, mean(texts[i].map(measure))] as const);
    const each = Object.fromEntries(worth.map(([wish, value]) => [wish, round(value)]));
    return { policy, ...each, both: round(mean(worth.map(([, value]) => value))) };
  });
  return { rows, samples: sideBySide(prompts, names, texts) };
}
