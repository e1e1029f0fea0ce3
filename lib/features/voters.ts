import { isTie } from './ties.js';
import { type Votes, votesByAnnotator } from './votes.js';

/** What is odd about who voted how often and how consistently; the same counts as lib/data/voters.ts makes of texts. */
export interface VoteReport {
  annotators: number;
  /** Of these, with a single vote. */
  oneVote: number;
  /** With fewer votes than own numbers. */
  fewVotes: number;
  /** With nothing but ties. */
  onlyTies: number;
  /** Who chose both ways between the same two items, or once called them a tie; and how many such couples. */
  contradicting: number;
  contradictions: number;
}

/** Counts voter by voter, so that memory does not grow with the votes. @param own numbers of an annotator's own */
export function voteReport(votes: Votes, own: number): VoteReport {
  const by = votesByAnnotator(votes);
  const report = { annotators: 0, oneVote: 0, fewVotes: 0, onlyTies: 0, contradicting: 0, contradictions: 0 };
  for (let u = 0; u < votes.annotators.length; u++) {
    const which = by.votes.subarray(by.offsets[u], by.offsets[u + 1]);
    if (which.length === 0) continue;
    report.annotators++;
    if (which.length === 1) report.oneVote++;
    if (which.length < own) report.fewVotes++;
    if (which.every((v) => isTie(votes, v))) report.onlyTies++;
    if (which.length < 2) continue;
    const said = new Map<string, number>();
    for (const v of which) {
      const places = votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]);
      const stages = Math.max(1, votes.stages[v]);
      for (let s = 0; s < stages; s++) {
        for (let t = s + 1; t < places.length; t++) {
          const [a, b] = [places[s], places[t]];
          if (a === b) continue;
          // Bits: the earlier item of the table won, the later won, a tie.
          const bit = isTie(votes, v) ? 4 : a < b ? 1 : 2;
          const couple = `${Math.min(a, b)} ${Math.max(a, b)}`;
          said.set(couple, (said.get(couple) ?? 0) | bit);
        }
      }
    }
    const both = [...said.values()].filter((bits) => (bits & (bits - 1)) !== 0).length;
    if (both > 0) report.contradicting++;
    report.contradictions += both;
  }
  return report;
}

/** What a person should know of the votes, one sentence each. @param rank as configured */
export function voteNotes(report: VoteReport, rank: number, own: number): string[] {
  const notes: string[] = [];
  const note = (count: number, text: string) => {
    if (count > 0) notes.push(`${count} of ${report.annotators} annotators ${text}`);
  };
  note(report.oneVote, 'have one vote');
  if (own === rank) note(report.fewVotes, `have fewer votes than the rank ${rank}; the prior decides the rest`);
  note(report.onlyTies, 'have nothing but ties');
  const couples = `${report.contradictions} couple${report.contradictions === 1 ? '' : 's'} of items`;
  note(report.contradicting, `contradict themselves on ${couples}; their votes were kept as they are`);
  return notes;
}
