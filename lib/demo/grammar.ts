import { Random } from '../base/random.js';
import { animals, endings, feelings, friends, names, openings, type Phrases, places, plots, times } from './phrases.js';

export type Mood = 'cheerful' | 'sad';
export type Style = 'plain' | 'ornate';

/** A short story of 3 to 6 sentences. The beginning tells nothing of the mood; `beginning + ending` is the whole text. */
export interface Story {
  /** One or two sentences: who, where, and what they set out to do. */
  beginning: string;
  /** Two to four sentences, with the space in front: how it went, and how it ended. */
  ending: string;
  /** Mood of the turn and of the last sentence; they differ in about a quarter of the stories. */
  turn: Mood;
  close: Mood;
  style: Style;
}

/** Share of stories that turn once more at the end, so that cheerfulness is graded and not only yes or no. */
const mixed = 0.25;
/** Share of the optional phrases that an ornate story keeps. */
const kept = 0.85;

function pick<T>(random: Random, items: readonly T[]): T {
  return items[random.below(items.length)];
}

/**
 * Writes one template out. `[a|b]`: one of several; `<…>`: a phrase that plain stories leave out (choices may stand in
 * it); `{slot}`: a value. The first letter becomes a capital.
 */
export function expand(
  template: string,
  slots: Readonly<Record<string, string>>,
  style: Style,
  random: Random,
): string {
  const text = template
    .replace(/<([^<>]*)>/g, (_, phrase: string) => (style === 'ornate' && random.uniform() < kept ? phrase : ''))
    .replace(/\[([^[\]]*)\]/g, (_, choices: string) => pick(random, choices.split('|')))
    .replace(/\{(\w+)\}/g, (_, slot: string) => {
      if (!Object.hasOwn(slots, slot)) throw new Error(`no slot ${slot} for ${template}`);
      return slots[slot];
    });
  return text[0].toUpperCase() + text.slice(1);
}

const articled = (word: string) => `${/^[aeiou]/.test(word) ? 'an' : 'a'} ${word}`;

function hero(random: Random): Record<string, string> {
  const { name, he, him, his } = pick(random, names);
  const animal = pick(random, animals);
  const friend = pick(
    random,
    friends.filter((other) => other !== animal),
  );
  return {
    name,
    he,
    him,
    his,
    animal,
    anAnimal: articled(animal),
    friend,
    aFriend: articled(friend),
    place: pick(random, places),
    time: pick(random, times),
  };
}

/** A story of the grammar; the same generator state gives the same story. */
export function tellStory(random: Random): Story {
  const style: Style = random.below(2) === 0 ? 'plain' : 'ornate';
  const turn: Mood = random.below(2) === 0 ? 'cheerful' : 'sad';
  const other: Mood = turn === 'cheerful' ? 'sad' : 'cheerful';
  const close = random.uniform() < mixed ? other : turn;
  const plot = pick(random, plots);
  const slots = { ...hero(random), thing: pick(random, plot.things) };
  const say = (phrases: readonly string[]) => expand(pick(random, phrases), slots, style, random);
  const byMood = (phrases: Phrases, mood: Mood) => say(phrases[mood]);

  const beginning = random.below(4) === 0 ? [say(plot.short)] : [say(openings), say(plot.wish)];
  const ending = [byMood(plot.turn, turn)];
  const middle = random.below(3);
  if (middle > 0) ending.push(byMood(plot.after, turn));
  if (middle > 1) ending.push(byMood(feelings, close));
  ending.push(byMood(endings, close));
  return { beginning: beginning.join(' '), ending: ` ${ending.join(' ')}`, turn, close, style };
}

/** `count` stories; deterministic by seed, and story i does not depend on `count`. */
export function tellStories(count: number, seed: number): Story[] {
  return Array.from({ length: count }, (_, i) => tellStory(new Random(seed, i)));
}

/** `count` different beginnings, for prompts. */
export function tellBeginnings(count: number, seed: number): string[] {
  const found = new Set<string>();
  for (let i = 0; found.size < count; i++) found.add(tellStory(new Random(seed, i)).beginning);
  return [...found];
}
