import type { Group } from './types.js';

/** What is odd about who voted how often and how consistently. */
export interface VoterReport {
  annotators: number;
  /** Of these, with a single vote. */
  oneVote: number;
  /** With nothing but ties. */
  onlyTies: number;
  /** Who ordered the same two completions of a prompt both ways, or once so and once as a tie, and how many such couples. */
  contradicting: number;
  contradictions: number;
}

/** Counts over rows as token groups. Rows without a name do not count. */
export function voterReport(groups: readonly Group[]): VoterReport {
  const key = textKeys();
  const votes = new Map<string, { rows: number; ties: number; orders: Map<string, number> }>();
  for (const group of groups) {
    if (group.annotator === undefined) continue;
    let of = votes.get(group.annotator);
    if (!of) {
      of = { rows: 0, ties: 0, orders: new Map() };
      votes.set(group.annotator, of);
    }
    of.rows++;
    if (group.tie) of.ties++;
    const prompt = key(group.prompt);
    for (const [first, second] of orderedPairs(group)) {
      const [a, b] = [key(group.completions[first]), key(group.completions[second])];
      if (a === b) continue;
      const couple = `${prompt} ${Math.min(a, b)} ${Math.max(a, b)}`;
      // Bits: the lower key won, the higher won, a tie.
      const said = group.tie ? 4 : a < b ? 1 : 2;
      of.orders.set(couple, (of.orders.get(couple) ?? 0) | said);
    }
  }
  const people = [...votes.values()];
  const twice = people.map(({ orders }) => [...orders.values()].filter((bits) => (bits & (bits - 1)) !== 0).length);
  return {
    annotators: people.length,
    oneVote: people.filter(({ rows }) => rows === 1).length,
    onlyTies: people.filter(({ rows, ties }) => rows === ties).length,
    contradicting: twice.filter((n) => n > 0).length,
    contradictions: twice.reduce((a, b) => a + b, 0),
  };
}

/** Every couple that the row orders: the ranked before all that are ranked after them or not at all. */
export function* orderedPairs(group: Group): Generator<[number, number]> {
  const ranking = group.ranking ?? [];
  const rest = new Set(group.completions.keys());
  for (const first of ranking) {
    rest.delete(first);
    for (const second of rest) yield [first, second];
  }
}

/** Equal token ids, equal number; arrays that groups share are looked at once. */
function textKeys(): (ids: Int32Array) => number {
  const known = new WeakMap<Int32Array, number>();
  const contents = new Map<string, number>();
  return (ids) => {
    let key = known.get(ids);
    if (key === undefined) {
      const text = ids.join();
      key = contents.get(text) ?? contents.size;
      contents.set(text, key);
      known.set(ids, key);
    }
    return key;
  };
}

/** What a reader should know before trusting adapters by annotator, one sentence a line. `rank`: the largest of an adapter. */
export function voterNotes(report: VoterReport, groups: readonly Group[], rank: number): string[] {
  const rows = new Map<string, number>();
  for (const { annotator } of groups) if (annotator !== undefined) rows.set(annotator, (rows.get(annotator) ?? 0) + 1);
  const few = [...rows.values()].filter((n) => n < rank).length;
  const notes: string[] = [];
  const note = (count: number, text: string) => {
    if (count > 0) notes.push(`${count} of ${report.annotators} annotators ${text}`);
  };
  note(report.oneVote, 'have one vote');
  note(few, `have fewer votes than the rank ${rank} of their adapter; adapter.penalty keeps them near the generic one`);
  note(report.onlyTies, 'have nothing but ties');
  note(
    report.contradicting,
    `contradict themselves on ${report.contradictions} couples of completions; their votes were kept as they are`,
  );
  return notes;
}
