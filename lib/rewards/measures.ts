import { pleasantWords, unpleasantWords } from './lexicon.js';
import type { RewardFunction, Sample } from './types.js';

/** Words of letters in any script, in lower case. */
export function wordsOf(text: string): string[] {
  return text.toLowerCase().match(/\p{L}[\p{L}\p{M}'’]*/gu) ?? [];
}

/** Letters of a word that count: a run without spaces would outweigh all words beside it. */
const longestWord = 20;

function sentencesOf(text: string): number {
  return Math.max(1, text.split(/[.!?…]+/).filter((part) => /\p{L}/u.test(part)).length);
}

/** Groups of vowels, a silent e at the end left out: within a syllable or so of a dictionary for English. */
export function syllablesOf(word: string): number {
  const groups = word.replace(/(?<=[^aeiouy])e$/, '').match(/[aeiouy]+/g);
  return Math.max(1, groups?.length ?? 0);
}

/** (p − u) / √words over pleasant and unpleasant words: 0 for no words. Scales like a mean's signal over its noise. */
export function sentiment(text: string): number {
  const words = wordsOf(text);
  if (words.length === 0) return 0;
  let score = 0;
  for (const word of words) score += pleasantWords.has(word) ? 1 : unpleasantWords.has(word) ? -1 : 0;
  return score / Math.sqrt(words.length);
}

/** Flesch's reading ease (Flesch 1948): 206.835 − 1.015 words/sentence − 84.6 syllables/word of 20 letters at most; larger is simpler. */
export function readability(text: string): number {
  const words = wordsOf(text);
  if (words.length === 0) return 0;
  const syllables = words.reduce((sum, word) => sum + syllablesOf(word.slice(0, longestWord)), 0);
  return 206.835 - (1.015 * words.length) / sentencesOf(text) - (84.6 * syllables) / words.length;
}

/** Mean letters of a word, 20 at most of each; 0 for no words. */
export function wordLength(text: string): number {
  const words = wordsOf(text);
  return words.length === 0
    ? 0
    : words.reduce((sum, word) => sum + Math.min(longestWord, [...word].length), 0) / words.length;
}

export type LengthUnit = 'tokens' | 'words' | 'characters';

/** Length in a unit, or minus its distance from `target`. */
export function length(sample: Sample, unit: LengthUnit, target: number | null): number {
  const n =
    unit === 'tokens'
      ? sample.ids.length
      : unit === 'words'
        ? wordsOf(sample.completion).length
        : [...sample.completion].length;
  return target === null ? n : -Math.abs(n - target);
}

/** 1 where the text matches, or how often it does. */
export function matches(text: string, pattern: RegExp, count: boolean): number {
  return count ? [...text.matchAll(pattern)].length : text.search(pattern) >= 0 ? 1 : 0;
}

/** A reward that looks at one text at a time. */
export const each =
  (measure: (sample: Sample) => number): RewardFunction =>
  (samples) =>
    Float64Array.from(samples, measure);
