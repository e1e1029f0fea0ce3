import { setImmediate } from 'node:timers/promises';
import type { Tokenizer } from '../model/tokenizer-types.js';
import { PluralignError } from '../native/errors.js';
import { encodeRow } from './encode.js';
import type { Group, Origin, Row } from './types.js';
import { badData, where } from './where.js';

export interface GroupsOptions {
  /** Most tokens of a prompt and one of its completions together. */
  maxLength: number;
  /**
   * A row with a completion that does not fit: `drop` (default) leaves the whole row out; `keep_start` cuts such
   * completions at their end and leaves the row out only where the prompt has no room for one completion token;
   * `error` refuses it. Prompts are never cut.
   */
  overLength?: 'drop' | 'keep_start' | 'error';
  signal?: AbortSignal;
  onProgress?: (done: number, total: number) => void;
}

/** Every row is a group or is counted under one reason: rows = groups + overLength + promptTooLong + noTokens. */
export interface TokenReport {
  rows: number;
  groups: number;
  /** Rows left out since a completion does not fit (`drop`). */
  overLength: number;
  /** Rows left out since the prompt alone leaves no room. */
  promptTooLong: number;
  /** Rows left out since a completion has no token at all (empty text, and the tokenizer has no EOS). */
  noTokens: number;
  /** The first rows left out, `maxListed` at most. */
  dropped: { origin: Origin; reason: string }[];
  /** Groups of which completions were cut (`keep_start`), and completions cut in all. */
  truncated: number;
  truncatedCompletions: number;
  /** Groups in which two completions have the same tokens only since they were cut. */
  identicalAfterTruncation: number;
  promptTokens: number;
  completionTokens: number;
  /** Most tokens of a prompt and one completion, before any rule. */
  longest: number;
}

const maxListed = 100;

/**
 * Turns rows into token ids, off and on with the event loop. Prompt and completion are tokenised apart, so that no token
 * straddles the border; see `encodeRow` for BOS, EOS and conversations. A group's `index` is its row's.
 * Arrays of equal prompts and completions are shared between groups: do not write to them.
 *
 * @throws PluralignError `BAD_ARGUMENT`; `ABORTED`; `BAD_DATA` for a row that cannot be rendered, a prompt without any
 * token, an over-length row under `error`, or where no row is left
 */
export async function groupsOf(
  rows: readonly Row[],
  tokenizer: Tokenizer,
  options: GroupsOptions,
): Promise<{ groups: Group[]; report: TokenReport }> {
  checkOptions(options);
  const report = emptyReport(rows.length);
  const groups: Group[] = [];
  const encode = encodeRow(tokenizer);
  let pause = performance.now() + 20;
  for (const [i, row] of rows.entries()) {
    if (performance.now() > pause) {
      options.onProgress?.(i, rows.length);
      await setImmediate();
      pause = performance.now() + 20;
    }
    if (options.signal?.aborted) throw new PluralignError('ABORTED', 'tokenising the data was stopped');
    const { prompt, completions } = encode(row);
    const group = fit(row, prompt, completions, options, report);
    if (group) groups.push(group);
  }
  options.onProgress?.(rows.length, rows.length);
  report.groups = groups.length;
  if (rows.length > 0 && groups.length === 0) {
    throw new PluralignError(
      'BAD_DATA',
      `none of ${rows.length} rows is left after tokenising; the first: ${report.dropped[0].reason}`,
    );
  }
  return { groups, report };
}

/** What became of the rows, one sentence a line; nothing where every row was kept whole. */
export function tokenNotes(report: TokenReport, maxLength: number): string[] {
  const notes: string[] = [];
  const note = (count: number, text: string) => {
    if (count > 0) notes.push(`${count} of ${report.rows} rows ${text}`);
  };
  note(report.overLength, `were left out, being longer than max_length ${maxLength} (longest: ${report.longest})`);
  note(report.promptTooLong, `were left out: the prompt alone fills max_length ${maxLength}`);
  note(report.noTokens, 'were left out: a completion has no tokens');
  note(report.truncated, `had ${report.truncatedCompletions} completions cut at max_length ${maxLength}`);
  note(report.identicalAfterTruncation, 'have equal completions after the cut, from which nothing can be learnt');
  return notes;
}

function fit(
  row: Row,
  prompt: Int32Array,
  completions: Int32Array[],
  options: GroupsOptions,
  report: TokenReport,
): Group | undefined {
  const { maxLength, overLength = 'drop' } = options;
  const drop = (reason: 'overLength' | 'promptTooLong' | 'noTokens', text: string): undefined => {
    report[reason] += 1;
    if (report.dropped.length < maxListed) {
      report.dropped.push({ origin: row.origin, reason: `${where(row.origin)}: ${text}` });
    }
  };
  const room = maxLength - prompt.length;
  const longest = prompt.length + Math.max(...completions.map((ids) => ids.length));
  report.longest = Math.max(report.longest, longest);
  const empty = completions.findIndex((ids) => ids.length === 0);
  if (empty >= 0) return drop('noTokens', `completion ${empty} has no tokens`);
  let kept = completions;
  if (longest > maxLength) {
    const lengths = `the prompt has ${prompt.length} tokens and the longest completion ${longest - prompt.length}`;
    if (overLength === 'error') {
      throw badData(
        row.origin,
        `${lengths}, expected at most max_length ${maxLength} together; raise max_length or choose another over-length rule`,
      );
    }
    if (room < 1) return drop('promptTooLong', `${lengths}; max_length ${maxLength} has no room for a completion`);
    if (overLength === 'drop') return drop('overLength', `${lengths}; max_length is ${maxLength}`);
    kept = completions.map((ids) => (ids.length > room ? ids.slice(0, room) : ids));
    report.truncated += 1;
    report.truncatedCompletions += completions.filter((ids) => ids.length > room).length;
    if (different(kept) < different(completions)) report.identicalAfterTruncation += 1;
  }
  report.promptTokens += prompt.length;
  for (const ids of kept) report.completionTokens += ids.length;
  return groupOf(row, prompt, kept);
}

function groupOf(row: Row, prompt: Int32Array, completions: Int32Array[]): Group {
  const { index, kind, origin, weight } = row;
  const group: Group = { index, kind, prompt, completions, weight, origin };
  if (row.annotator !== undefined) group.annotator = row.annotator;
  if (row.group !== undefined) group.group = row.group;
  if (row.kind === 'pair') {
    group.ranking = [0, 1];
    if (row.margin !== undefined) group.margin = row.margin;
    if (row.tie) group.tie = true;
  }
  if (row.kind === 'ranking') group.ranking = [...row.ranking];
  if (row.kind === 'unpaired') group.label = row.label;
  return group;
}

function different(completions: Int32Array[]): number {
  return new Set(completions.map((ids) => ids.join())).size;
}

function checkOptions({ maxLength, overLength }: GroupsOptions): void {
  if (!Number.isSafeInteger(maxLength) || maxLength < 2) {
    throw new PluralignError('BAD_ARGUMENT', `max_length: found ${maxLength}, expected an integer of at least 2`);
  }
  if (overLength !== undefined && !['drop', 'keep_start', 'error'].includes(overLength)) {
    throw new PluralignError(
      'BAD_ARGUMENT',
      `over-length rule: found ${overLength}, expected drop, keep_start or error`,
    );
  }
}

function emptyReport(rows: number): TokenReport {
  return {
    rows,
    groups: 0,
    overLength: 0,
    promptTooLong: 0,
    noTokens: 0,
    dropped: [],
    truncated: 0,
    truncatedCompletions: 0,
    identicalAfterTruncation: 0,
    promptTokens: 0,
    completionTokens: 0,
    longest: 0,
  };
}
