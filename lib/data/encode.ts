import type { Tokenizer } from '../model/tokenizer-types.js';
import { PluralignError } from '../native/errors.js';
import type { Message, Row, Text } from './types.js';
import { badData, describe } from './where.js';

export interface Encoded {
  prompt: Int32Array;
  completions: Int32Array[];
}

/** Entries that a cache keeps before it starts anew; prompts and completions repeat within a data set. */
const cacheEntries = 1 << 16;

/**
 * A function from row to token ids.
 *
 * Plain text: BOS, the prompt's tokens | the completion's tokens, EOS; each special token once, where the tokenizer has
 * it, also where the text itself starts or ends with it.
 *
 * Conversations: the prompt is rendered with the generation prompt, then prompt and completion together; what follows the
 * rendered prompt is the completion, and a template whose rendering is not so continued is refused. The template writes
 * its own closing tokens, so no EOS is added; BOS is added where the rendering does not start with it.
 *
 * A text row without prompt and BOS gives its first token as the prompt: nothing predicts it.
 */
export function encodeRow(tokenizer: Tokenizer): (row: Row) => Encoded {
  const { bosId, eosId } = tokenizer;
  const bos = bosId === null ? new Int32Array(0) : Int32Array.of(bosId);
  const withBos = (ids: Int32Array) => (ids[0] === bosId ? ids : joined(bos, ids));
  const withEos = (ids: Int32Array) =>
    eosId === null || ids.at(-1) === eosId ? ids : joined(ids, Int32Array.of(eosId));
  const plainPrompt = cached((text) => withBos(tokenizer.encode(text)));
  const plainCompletion = cached((text) => withEos(tokenizer.encode(text)));
  const renderedPrompt = cached((text) => withBos(tokenizer.encodeRendered(text)));
  const renderedCompletion = cached((text) => tokenizer.encodeRendered(text));

  const conversation = (row: Row, prompt: Message[], completions: Message[][]): Encoded => {
    if (!tokenizer.hasChatTemplate) {
      throw badData(
        row.origin,
        'found a conversation, and the tokenizer has no chat template; write plain text or add a chat_template.jinja',
      );
    }
    // With no turn to render, the prompt is BOS alone; a template need not render an empty list.
    const start = prompt.length > 0 ? render(tokenizer, row, prompt, true) : '';
    return {
      prompt: start === '' ? bos : renderedPrompt(start),
      completions: completions.map((turns) => {
        const whole = render(tokenizer, row, [...prompt, ...turns], false);
        if (!whole.startsWith(start)) throw noPrefix(row, start, whole);
        return renderedCompletion(whole.slice(start.length));
      }),
    };
  };

  return (row) => {
    const texts = completionsOf(row);
    const encoded: Encoded =
      typeof row.prompt === 'string'
        ? { prompt: plainPrompt(row.prompt), completions: texts.map((text) => plainCompletion(text as string)) }
        : conversation(row, row.prompt, texts as Message[][]);
    if (row.prompt.length === 0 && bosId !== null) {
      // Without a prompt the completion is the start of the text, which may write BOS out.
      return {
        prompt: bos,
        completions: encoded.completions.map((ids) => (ids[0] === bosId ? ids.subarray(1) : ids)),
      };
    }
    if (encoded.prompt.length > 0) return encoded;
    if (row.kind === 'text') {
      const [whole] = encoded.completions;
      return { prompt: whole.subarray(0, 1), completions: [whole.subarray(1)] };
    }
    throw badData(
      row.origin,
      'the prompt has no tokens and the tokenizer adds none in front, so nothing predicts the first token of a completion; ' +
        'give the row a prompt',
    );
  };
}

/** A function from row to the token ids of its prompt alone, as `encodeRow` gives them. Throws `BAD_DATA` where there are none. */
export function encodePrompt(tokenizer: Tokenizer): (row: Row) => Int32Array {
  const { bosId } = tokenizer;
  return (row) => {
    if (typeof row.prompt !== 'string' && !tokenizer.hasChatTemplate)
      throw badData(row.origin, 'found a conversation, and the tokenizer has no chat template; write plain text');
    const ids =
      typeof row.prompt === 'string'
        ? tokenizer.encode(row.prompt)
        : tokenizer.encodeRendered(render(tokenizer, row, row.prompt, true));
    const whole = bosId === null || ids[0] === bosId ? ids : joined(Int32Array.of(bosId), ids);
    if (whole.length === 0) throw badData(row.origin, 'the prompt has no tokens and the tokenizer adds none in front');
    return whole;
  };
}

function completionsOf(row: Row): Text[] {
  switch (row.kind) {
    case 'pair':
      return [row.chosen, row.rejected];
    case 'ranking':
      return row.responses;
    default:
      return [row.completion];
  }
}

function render(tokenizer: Tokenizer, row: Row, messages: Message[], addGenerationPrompt: boolean): string {
  try {
    return tokenizer.render(messages, { addGenerationPrompt });
  } catch (error) {
    if (error instanceof PluralignError && error.code !== 'BAD_DATA') throw error;
    const message = error instanceof Error ? error.message : String(error);
    const roles = messages.map(({ role }) => role).join(', ');
    throw badData(row.origin, `the chat template refuses a conversation of the roles ${roles}: ${message}`, {
      cause: error,
    });
  }
}

function noPrefix(row: Row, start: string, whole: string): PluralignError {
  let at = 0;
  while (at < start.length && start[at] === whole[at]) at += 1;
  const from = Math.max(0, at - 10);
  return badData(
    row.origin,
    'the chat template renders the prompt differently once a completion follows, so that the completion cannot be told ' +
      `apart: at character ${at} the prompt has ${describe(start.slice(from, at + 20))} and the whole ` +
      `${describe(whole.slice(from, at + 20))}; use a template that only appends`,
  );
}

function joined(a: Int32Array, b: Int32Array): Int32Array {
  const out = new Int32Array(a.length + b.length);
  out.set(a);
  out.set(b, a.length);
  return out;
}

function cached(make: (text: string) => Int32Array): (text: string) => Int32Array {
  const cache = new Map<string, Int32Array>();
  return (text) => {
    let ids = cache.get(text);
    if (!ids) {
      if (cache.size >= cacheEntries) cache.clear();
      ids = make(text);
      cache.set(text, ids);
    }
    return ids;
  };
}
