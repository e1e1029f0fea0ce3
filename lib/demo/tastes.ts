/** Words that make a story cheerful; every cheerful sentence of the grammar has at least one, and no sad one has. */
export const cheerfulWords: ReadonlySet<string> = new Set(
  (
    'bright cheered clapped danced found glad golden grinned happy hugged joy laughed loved liked merry proud sang smile smiled ' +
    'sunny warm won wonderful'
  ).split(' '),
);

/** Words that make a story sad; all but one of the grammar's sad sentences have at least one, and no cheerful one has. */
export const sadWords: ReadonlySet<string> = new Set(
  (
    'alone broken cold cried dark died empty gloomy gone grey hurt lonely lost never nobody rain ruined sad shivered ' +
    'sighed sorrow tears wept'
  ).split(' '),
);

function sentencesOf(text: string): string[][] {
  return text
    .split(/[.!?]+/)
    .map((sentence) => sentence.toLowerCase().match(/[a-z']+/g) ?? [])
    .filter((words) => words.length > 0);
}

/**
 * How cheerful a text is, in [−1, 1]: (c − s) / (c + s) over its cheerful and sad words, where words of the last sentence
 * count twice, since a story is remembered by its end. 0 where there is neither.
 */
export function cheerfulness(text: string): number {
  const sentences = sentencesOf(text);
  let cheerful = 0;
  let sad = 0;
  sentences.forEach((words, i) => {
    const weight = i === sentences.length - 1 ? 2 : 1;
    for (const word of words) {
      if (cheerfulWords.has(word)) cheerful += weight;
      else if (sadWords.has(word)) sad += weight;
    }
  });
  return cheerful + sad === 0 ? 0 : (cheerful - sad) / (cheerful + sad);
}

/** Words a sentence at which `wordiness` is 0, and the distance from there at which it is ±1. */
const middleLength = 9;
const lengthScale = 4;

/**
 * How ornate a text is, in [−1, 1]: mean words a sentence, 5 or fewer being −1 (plain), 9 being 0, 13 or more being 1.
 * 0 for no text.
 */
export function wordiness(text: string): number {
  const sentences = sentencesOf(text);
  if (sentences.length === 0) return 0;
  const mean = sentences.reduce((sum, words) => sum + words.length, 0) / sentences.length;
  return Math.max(-1, Math.min(1, (mean - middleLength) / lengthScale));
}

/** What somebody likes: a weight on each measure of a text. */
export interface Taste {
  cheerfulness: number;
  wordiness: number;
}

/** How much somebody of this taste likes a text. */
export function utility(taste: Taste, text: string): number {
  return taste.cheerfulness * cheerfulness(text) + taste.wordiness * wordiness(text);
}
