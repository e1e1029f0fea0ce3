import { animals, endings, feelings, friends, names, openings, places, plots, times } from './phrases.js';

const escaped = (text: string) => text.replace(/[.*+?^${}()|\\]/g, '\\$&');
const anyOf = (values: readonly string[]) => `(?:${[...new Set(values)].map(escaped).join('|')})`;
const articled = `an? ${anyOf([...animals, ...friends])}`;

/** What a slot may hold, whatever stands in the other slots. */
const slots: Record<string, string> = {
  name: anyOf(names.map(({ name }) => name)),
  he: '(?:he|she)',
  him: '(?:him|her)',
  his: '(?:his|her)',
  animal: anyOf(animals),
  anAnimal: articled,
  friend: anyOf(friends),
  aFriend: articled,
  place: anyOf(places),
  time: anyOf(times),
};

/** A template as a regular expression of all that it can say. */
function pattern(template: string, things: readonly string[]): string {
  const body = escaped(template.replace(/\{(\w+)\}/g, '#$1#'))
    .replace(/\[([^[\]]*)\]/g, (_, choices: string) => `(?:${choices.replaceAll('\\|', '|')})`)
    .replace(/<([^<>]*)>/g, '(?:$1)?')
    .replace(/#(\w+)#/g, (_, slot: string) => (slot === 'thing' ? anyOf(things) : slots[slot]));
  return `(?:${body})`;
}

const sentence = new RegExp(
  `^(?:${[
    ...[...openings, ...feelings.cheerful, ...feelings.sad, ...endings.cheerful, ...endings.sad].map((template) =>
      pattern(template, []),
    ),
    ...plots.flatMap(({ things, wish, short, turn, after }) =>
      [...wish, ...short, ...turn.cheerful, ...turn.sad, ...after.cheerful, ...after.sad].map((template) =>
        pattern(template, things),
      ),
    ),
  ].join('|')})$`,
  'i',
);

/** Share of a text's sentences that the grammar can say, word for word; 0 for no text. Whether they fit together is not asked. */
export function grammatical(text: string): number {
  const sentences = text.match(/[^.]+(?:\.|$)/g)?.map((s) => s.trim()) ?? [];
  return sentences.filter((s) => sentence.test(s)).length / Math.max(1, sentences.length);
}
