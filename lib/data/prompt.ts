import type { Message, Text } from './types.js';

/** Letters, digits, marks and apostrophes of scripts that put spaces between words. */
const spacedWord =
  /^(?![\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}\p{Script=Myanmar}])[\p{L}\p{N}\p{M}_'’]/u;

/**
 * The prompt that completions share without saying so, and what is left of each.
 *
 * Conversations: the longest common prefix of turns that leaves every completion one turn, as TRL's `extract_prompt`.
 *
 * Plain text: the longest common prefix of characters, moved back to where a word starts, and one space further where
 * a space stands before it. TRL cuts inside words ("bl" of " blue" and " black"), and then neither half is tokenised as
 * the model has learnt it; the space goes to the completion since tokenizers attach it to the word that follows. No
 * completion is left empty: where one text starts with the other, or both are equal, the last shared word stays with the
 * completions. What texts share and the prompt does not hold cancels in every loss on differences, so that a short prompt
 * costs time, never correctness.
 */
export function extractPrompt<T extends Text>(texts: T[]): { prompt: T; rest: T[] } {
  const cut = typeof texts[0] === 'string' ? sharedText(texts as string[]) : sharedTurns(texts as Message[][]);
  return { prompt: texts[0].slice(0, cut) as T, rest: texts.map((text) => text.slice(cut) as T) };
}

function sharedTurns(conversations: Message[][]): number {
  const [first, ...others] = conversations;
  const most = Math.max(0, Math.min(...conversations.map((turns) => turns.length)) - 1);
  for (let i = 0; i < most; i++) {
    const turn = first[i];
    if (others.some((turns) => turns[i].role !== turn.role || turns[i].content !== turn.content)) return i;
  }
  return most;
}

function sharedText(texts: string[]): number {
  const [first, ...others] = texts;
  const shortest = Math.min(...texts.map((text) => text.length));
  let cut = 0;
  while (cut < shortest && others.every((text) => text.charCodeAt(cut) === first.charCodeAt(cut))) cut += 1;
  const splits = (at: number) => at > 0 && texts.some((text) => at < text.length && splitsWord(text, at));
  // Where a text ends with the prefix, the prefix gives up its last character first and then the word that it cuts.
  if (cut === shortest) cut -= 1;
  while (splits(cut)) cut -= 1;
  if (cut > 0 && first[cut - 1] === ' ') cut -= 1;
  return Math.max(0, cut);
}

/** Whether a cut before `at` (0 < at < length) would part a word, a character or a character and its marks. */
function splitsWord(text: string, at: number): boolean {
  const after = text.charCodeAt(at);
  if (after >= 0xdc00 && after <= 0xdfff) return true;
  const next = String.fromCodePoint(text.codePointAt(at) as number);
  if (/^[\p{M}\u200d]/u.test(next)) return true;
  const low = text.charCodeAt(at - 1) >= 0xdc00 && text.charCodeAt(at - 1) <= 0xdfff && at > 1;
  const before = low ? text.slice(at - 2, at) : text[at - 1];
  return spacedWord.test(before) && spacedWord.test(next);
}
