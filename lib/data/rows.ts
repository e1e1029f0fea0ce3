import { Fields } from './fields.js';
import { extractPrompt } from './prompt.js';
import type { RawRecord } from './readers.js';
import type { Message, Row, Text } from './types.js';

/** Every field that a row may have; others are ignored and counted. */
export const rowFields: ReadonlySet<string> = new Set([
  'prompt',
  'chosen',
  'rejected',
  'margin',
  'tie',
  'responses',
  'ranking',
  'completion',
  'label',
  'text',
  'messages',
  'annotator',
  'group',
  'weight',
]);

/** The row formats, for messages. */
export const rowFormats =
  '{"chosen","rejected"}, {"responses","ranking"}, {"prompt","completion","label"}, {"prompt","completion"}, ' +
  '{"text"} or {"messages"}';

export interface RowOptions {
  /**
   * Rows name items of a table: texts are names (numbers are allowed), taken as they stand, and no prompt is looked for
   * in them.
   */
  items?: boolean;
  /** Rows are prompts: only `prompt` is used, and every row has one. They come as text rows without a completion. */
  prompts?: boolean;
}

export interface ParsedRow {
  row: Row;
  /** Fields that hold something and were not used, once for each time. */
  ignored: string[];
  /** Two completions are equal: nothing can be learnt from their order. */
  identical: boolean;
  /** Some completion is the empty text: only the closing EOS is scored. */
  emptyCompletion: boolean;
}

/**
 * Validates a record as one of the row formats. A record that fits several is the first of: pair, ranking, completion
 * (with label: unpaired), messages, text; what belongs to the others counts as ignored.
 *
 * @throws PluralignError `BAD_DATA` naming file, line, field, what was found and what was expected
 */
export function parseRow(record: RawRecord, index: number, options: RowOptions = {}): ParsedRow {
  if (record.problem) throw record.problem;
  const fields = new Fields(record.value, record.origin);
  const base = {
    index,
    origin: record.origin,
    annotator: fields.name('annotator'),
    group: fields.name('group'),
    weight: fields.number('weight', 'a finite number of 0 or more', (value) => value >= 0) ?? 1,
  };
  const used = ['annotator', 'group', 'weight'];
  const use = (...names: string[]) => used.push(...names);
  const done = (row: Row, completions: Text[]): ParsedRow => {
    const unused = fields.names().filter((name) => !used.includes(name));
    return {
      row: withoutAbsent(row),
      ignored: [...(record.ignored ?? []), ...unused, ...fields.ignored],
      identical: new Set(completions.map((text) => JSON.stringify(text))).size < completions.length,
      emptyCompletion: completions.some((text) => text === ''),
    };
  };

  if (options.prompts) {
    if (!fields.has('prompt')) fields.fail('prompt', fields.get('prompt'), 'a text or an array of messages to answer');
    const prompt = fields.text('prompt');
    used.push(...rowFields);
    return done({ kind: 'text', ...base, prompt, completion: emptyLike(prompt) }, []);
  }
  const isPair = fields.has('chosen') || fields.has('rejected');
  const isRanking = fields.has('responses') || fields.has('ranking');
  if (isPair && isRanking) {
    throw fields.error('found both chosen/rejected and responses/ranking, expected one of them; split the row in two');
  }

  if (isPair) {
    for (const field of ['chosen', 'rejected']) {
      if (!fields.has(field)) fields.fail(field, fields.get(field), 'a text or an array of messages');
    }
    const texts = ['chosen', 'rejected'].map((field) => (options.items ? itemName(fields, field) : fields.text(field)));
    const { prompt, completions, promptUsed } = completionsOf(fields, texts, ['chosen', 'rejected'], options);
    if (promptUsed) use('prompt');
    use('chosen', 'rejected', 'margin', 'tie');
    const [chosen, rejected] = completions;
    const margin = fields.number('margin', 'a finite number');
    const tie = fields.has('tie') && fields.boolean('tie') ? true : undefined;
    if (tie && margin !== undefined)
      fields.fail('margin', margin, 'none beside a tie, which says that neither is better');
    return done({ kind: 'pair', ...base, prompt, chosen, rejected, margin, tie }, completions);
  }

  if (isRanking) {
    const texts = options.items ? fields.nameArray('responses') : fields.textArray('responses');
    if (texts.length < 2) fields.fail('responses', fields.get('responses'), 'at least 2 responses');
    const ranking = fields.ranking('ranking', texts.length);
    const names = texts.map((_, i) => `responses[${i}]`);
    const { prompt, completions, promptUsed } = completionsOf(fields, texts, names, options);
    if (promptUsed) use('prompt');
    use('responses', 'ranking');
    return done({ kind: 'ranking', ...base, prompt, responses: completions, ranking }, completions);
  }

  if (fields.has('completion')) {
    const completion = fields.text('completion');
    const prompt = fields.has('prompt') ? fields.text('prompt') : emptyLike(completion);
    refuseMixed(fields, prompt, [completion], ['completion']);
    use('prompt', 'completion');
    if (!fields.has('label')) return done({ kind: 'text', ...base, prompt, completion }, [completion]);
    use('label');
    return done({ kind: 'unpaired', ...base, prompt, completion, label: fields.boolean('label') }, [completion]);
  }
  if (fields.has('label') && fields.has('prompt')) {
    fields.fail('completion', fields.get('completion'), 'a text or an array of messages');
  }

  if (fields.has('messages')) {
    const completion = fields.text('messages');
    if (typeof completion === 'string') fields.fail('messages', completion, 'an array of messages');
    use('messages');
    return done({ kind: 'text', ...base, prompt: [], completion }, [completion]);
  }
  if (fields.has('text')) {
    const completion = fields.text('text');
    if (typeof completion !== 'string' || completion === '')
      fields.fail('text', completion, 'a text that is not empty');
    use('text');
    return done({ kind: 'text', ...base, prompt: '', completion }, [completion]);
  }
  const found = fields
    .names()
    .slice(0, 8)
    .map((name) => JSON.stringify(name.slice(0, 40)));
  throw fields.error(
    `found ${found.length > 0 ? `only the fields ${found.join(', ')}` : 'no fields'}, expected ${rowFormats}`,
  );
}

/**
 * The prompt, written out or shared by the completions. As in TRL, a text prompt beside conversations that share their
 * first turns is a copy of one of those turns: the turns are the prompt.
 */
function completionsOf(
  fields: Fields,
  texts: Text[],
  names: string[],
  options: RowOptions,
): { prompt: Text; completions: Text[]; promptUsed: boolean } {
  refuseMixed(fields, texts[0], texts, names);
  if (fields.has('prompt')) {
    const prompt = fields.text('prompt');
    if (typeof prompt === 'string' && typeof texts[0] !== 'string') {
      const shared = extractPrompt(texts);
      if (shared.prompt.length > 0) return { prompt: shared.prompt, completions: shared.rest, promptUsed: false };
    }
    refuseMixed(fields, prompt, texts, names);
    return { prompt, completions: texts, promptUsed: true };
  }
  if (options.items) return { prompt: '', completions: texts, promptUsed: false };
  const { prompt, rest } = extractPrompt(texts);
  return { prompt, completions: rest, promptUsed: false };
}

function refuseMixed(fields: Fields, like: Text, texts: Text[], names: string[]): void {
  const other = texts.findIndex((text) => typeof text !== typeof like);
  if (other < 0) return;
  const expected = typeof like === 'string' ? 'a text' : 'an array of messages';
  fields.fail(names[other], texts[other], `${expected}, like the row's prompt and other completions`);
}

function itemName(fields: Fields, field: string): string {
  return fields.name(field) as string;
}

function emptyLike(text: Text): Text {
  return typeof text === 'string' ? '' : ([] as Message[]);
}

/** Rows are compared, hashed and printed: an absent field should not be there as undefined. */
function withoutAbsent(row: Row): Row {
  return Object.fromEntries(Object.entries(row).filter(([, value]) => value !== undefined)) as unknown as Row;
}
