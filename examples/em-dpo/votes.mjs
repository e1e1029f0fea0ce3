// Votes of people with planted tastes, on stories that a small model tells. The same for the same seed.
import { Random } from '../../dist/index.js';

const people = [
  ['Lily', 'She'],
  ['Tom', 'He'],
  ['Mia', 'She'],
  ['Ben', 'He'],
  ['Sue', 'She'],
  ['Max', 'He'],
  ['Anna', 'She'],
  ['Jack', 'He'],
];
// Each breaks off within a sentence, so that the story goes on.
const openings = [
  (name) => `One day, ${name} went to the park with`,
  (name, they) => `${name} had a new toy. ${they} wanted to`,
  (name, they) => `Once upon a time, there was a child named ${name}. ${they} liked to`,
  (name) => `It was raining, so ${name} stayed at home and`,
];
const prompts = people.flatMap(([name, they]) => openings.map((opening) => opening(name, they)));
const perPrompt = 24;

const happy = new Set(
  'happy happily glad smile smiled smiling laugh laughed fun love loved loves hug hugged nice kind good great best friend friends play played beautiful proud excited joy safe thank thanked wonderful'.split(
    ' ',
  ),
);
const sad = new Set(
  'sad sadly cry cried crying scared afraid angry mad bad hurt lost broke broken sorry mean worried alone fell no not never upset dirty dark'.split(
    ' ',
  ),
);
const animals = new Set(
  'dog dogs cat cats bird birds fish duck ducks bear rabbit bunny mouse frog lion tiger horse cow pig bug butterfly bee squirrel puppy kitten animal animals monkey turtle'.split(
    ' ',
  ),
);

const wordsOf = (text) => text.toLowerCase().match(/[a-z']+/g) ?? [];
const count = (text, set) => wordsOf(text).reduce((n, word) => n + (set.has(word) ? 1 : 0), 0);

/** What people can like about a story, as a number: its length, its mood, its topic. */
export const tastes = {
  short: (text) => -wordsOf(text).length,
  happy: (text) => Math.sign(count(text, happy) - count(text, sad)),
  animals: (text) => Math.min(1, count(text, animals)),
};

/** Stories for every prompt, cut after one to five sentences so that lengths differ. */
export async function tell(model, seed) {
  const random = new Random(seed, 1);
  const stories = [];
  for (const [p, prompt] of prompts.entries()) {
    const { bosId } = model.tokenizer;
    const ids = Int32Array.from([...(bosId === null ? [] : [bosId]), ...model.tokenizer.encode(prompt)]);
    const made = await model.generate(
      Array.from({ length: perPrompt }, () => ids),
      null,
      { maxNewTokens: 90, temperature: 0.8, seed: 1000 * (seed * prompts.length + p) },
    );
    for (const tokens of made) {
      const whole = model.tokenizer.decode(tokens, { skipSpecial: true }).split('<|')[0];
      const sentences = whole.match(/[^.!?]+[.!?]+"?/g) ?? [];
      const text = sentences
        .slice(0, 1 + random.below(5))
        .join('')
        .replace(/\s+/g, ' ')
        .trim();
      if (text !== '') stories.push({ prompt, text: ` ${text}` });
    }
  }
  return stories;
}

/** Scale of a person's choice: of stories one standard deviation apart in their taste they choose the better 98 times in 100. */
const sharpness = 4;

/**
 * `groups`: taste → number of annotators. Each votes on `pairs` pairs of stories of one prompt for training (every fifth
 * annotator on 5) and on `held` pairs of other stories for evaluation.
 */
export function vote(stories, groups, { seed, pairs = 20, held = 10 }) {
  const random = new Random(seed, 2);
  const sides = [stories.filter((_, i) => i % 3 !== 2), stories.filter((_, i) => i % 3 === 2)];
  const rows = [[], []];
  let annotators = 0;
  for (const [taste, size] of Object.entries(groups)) {
    const score = tastes[taste];
    const values = stories.map((story) => score(story.text));
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const deviation = Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length);
    for (let i = 0; i < size; i++) {
      const annotator = `u${annotators++}`;
      const counts = [i % 5 === 4 ? 5 : pairs, held];
      for (const side of [0, 1]) {
        for (let n = 0; n < counts[side]; ) {
          const a = sides[side][random.below(sides[side].length)];
          const others = sides[side].filter((story) => story.prompt === a.prompt && story.text !== a.text);
          const b = others[random.below(others.length)];
          const gap = (sharpness * (score(a.text) - score(b.text))) / deviation;
          // People say nothing where they see no difference.
          if (gap === 0) continue;
          const first = random.uniform() < 1 / (1 + Math.exp(-gap));
          const [chosen, rejected] = first ? [a, b] : [b, a];
          rows[side].push({ prompt: a.prompt, chosen: chosen.text, rejected: rejected.text, annotator, group: taste });
          n++;
        }
      }
    }
  }
  return { train: rows[0], eval: rows[1] };
}
