import type { ResolvedConfig } from '../config/index.js';
import { encodePrompt } from '../data/encode.js';
import { type DataReport, dataNotes, readRows } from '../data/index.js';
import { splitRows } from '../data/split.js';
import type { Group, Row, Text } from '../data/types.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';

/** A prompt to answer. As a group it has no completion yet. */
export interface Prompt extends Group {
  text: Text;
}

export interface PreparedPrompts {
  train: Prompt[];
  eval: Prompt[];
  reports: { train: DataReport; eval: DataReport | null };
  notes: string[];
}

/** A prompt with a text behind it: of a conversation, behind its last turn. */
export function withText(prompt: Text, text: string | null): Text {
  if (text === null) return prompt;
  if (typeof prompt === 'string') return `${prompt}${text}`;
  const last = prompt[prompt.length - 1];
  return [...prompt.slice(0, -1), { ...last, content: `${last.content}${text}` }];
}

/**
 * Rows as prompts of token ids. Those without room for an answer of `room` tokens are left out and counted in `notes`, or
 * with `over_length: error` refused. Throws `BAD_DATA`.
 */
export function encodePrompts(
  rows: readonly Row[],
  model: Model,
  room: number,
  { max_length: limit, over_length }: Pick<ResolvedConfig['data'], 'max_length' | 'over_length'>,
  notes: string[],
): Prompt[] {
  const encode = encodePrompt(model.tokenizer);
  const longest = Math.min(model.config.maxPositions, limit ?? Number.POSITIVE_INFINITY) - room;
  const prompts = rows.map(
    (row): Prompt => ({
      index: row.index,
      kind: 'text',
      prompt: encode(row),
      completions: [],
      weight: row.weight,
      origin: row.origin,
      text: row.prompt,
      ...(row.annotator === undefined ? {} : { annotator: row.annotator }),
    }),
  );
  const long = prompts.find(({ prompt }) => prompt.length > longest);
  if (over_length === 'error' && long)
    throw new PluralignError(
      'BAD_DATA',
      `${long.origin.file}:${long.origin.line}: the prompt has ${long.prompt.length} tokens, expected at most ${longest}, which ` +
        `leaves room for rollout.max_new_tokens: ${room}; data.over_length: drop leaves such rows out`,
    );
  const kept = prompts.filter(({ prompt }) => prompt.length <= longest);
  if (kept.length === 0)
    throw new PluralignError(
      'BAD_DATA',
      `no prompt of ${prompts.length} leaves room for rollout.max_new_tokens: ${room}; the first, ` +
        `${rows[0].origin.file}:${rows[0].origin.line}, has ${prompts[0].prompt.length} tokens, expected at most ${longest}`,
    );
  if (kept.length < prompts.length)
    notes.push(
      `${prompts.length - kept.length} of ${prompts.length} prompts leave no room for an answer and were left out`,
    );
  return kept;
}

/** Reads the prompts of a configuration. */
export async function preparePrompts(
  config: ResolvedConfig,
  model: Model,
  signal?: AbortSignal,
): Promise<PreparedPrompts> {
  const { data, rollout } = config;
  const options = { onBadRow: data.on_bad_row, dedupe: data.dedupe, prompts: true, signal };
  const room = rollout!.max_new_tokens;
  const read = await readRows(data.train, options);
  const notes = dataNotes(read.report);
  let { rows } = read;
  let held: Row[] = [];
  let report: DataReport | null = null;
  if (data.eval) {
    const found = await readRows(data.eval, options);
    [held, report] = [found.rows, found.report];
    notes.push(...dataNotes(found.report));
  } else if (data.split) ({ train: rows, eval: held } = splitRows(rows, data.split));
  return {
    train: encodePrompts(rows, model, room, data, notes),
    eval: held.length > 0 ? encodePrompts(held, model, room, data, notes) : [],
    reports: { train: read.report, eval: report },
    notes,
  };
}
