/** People whose tastes are known: true rewards linear in three measures of a text, tastes on a plane, some with few votes. */
import { Random } from '../../dist/index.js';
import { sentiment, wordLength, wordsOf } from '../../dist/rewards/measures.js';

/** How many votes each of the people gives. */
export const votesOf = [60, 60, 60, 60, 12, 12, 12, 12, 3, 3, 3, 3];
export const kinds = [60, 12, 3];
export const nameOf = (u) => `voter-${String(u).padStart(2, '0')}`;
const strength = 1.5;

/** Cheerful words, long words, short sentences; and what nobody has a taste for: length, talk, exclamations, names, variety. */
function measuresOf(text) {
  const words = wordsOf(text);
  const n = Math.max(1, words.length);
  const sentences = text.split(/[.!?…]+/).filter((part) => /\p{L}/u.test(part)).length;
  const count = (pattern) => [...text.matchAll(pattern)].length / n;
  return [
    sentiment(text),
    wordLength(text),
    sentences / n,
    words.length,
    count(/["“”]/g),
    count(/[!?]/g),
    count(/\p{Lu}/gu),
    new Set(words).size / n,
  ];
}

/** Features of texts: measures in deviations of some texts, cut at ± 3. */
export function featuresBy(texts) {
  const all = texts.map(measuresOf);
  const mean = all[0].map((_, k) => all.reduce((sum, m) => sum + m[k], 0) / all.length);
  const deviation = mean.map((m, k) => Math.sqrt(all.reduce((sum, x) => sum + (x[k] - m) ** 2, 0) / all.length));
  return (text) => measuresOf(text).map((x, k) => Math.max(-3, Math.min(3, (x - mean[k]) / deviation[k])));
}

/** What a measure in deviations is worth: as much as it is, or, to those who like one deviation best, less beyond it. */
export const truths = {
  linear: (x) => x,
  moderate: (x) => (Math.abs(x) <= 1 ? x : Math.sign(x) * (2 - Math.abs(x))),
};

/** Tastes of one plane among the first three features, and everyone's true reward of features. */
export function plantOn(count, seed, truth = truths.linear) {
  const random = new Random(seed, 0x7a57e);
  const normal = () => [0, 1, 2].map(() => random.normal());
  const unit = (v) => v.map((x) => x / Math.hypot(...v));
  const first = unit(normal());
  const raw = normal();
  const along = raw.reduce((sum, x, k) => sum + x * first[k], 0);
  const second = unit(raw.map((x, k) => x - along * first[k]));
  const tastes = Array.from({ length: count }, () => {
    const angle = 2 * Math.PI * random.uniform();
    return first.map((x, k) => strength * (x * Math.cos(angle) + second[k] * Math.sin(angle)));
  });
  return (u, x) => tastes[u].reduce((sum, t, k) => sum + t * truth(x[k]), 0);
}

/** Everyone's true reward of a text. */
export function plant(features, seed, truth = truths.linear) {
  const reward = plantOn(votesOf.length, seed, truth);
  return (u, text) => reward(u, features(text));
}

/**
 * On which two answers to a prompt somebody votes, given their features: any two; two that are alike in cheerful words (of
 * all pairs of the prompt the most alike); two ordinary ones (within a deviation in all that there are tastes for, as far as
 * the prompt has such).
 */
export const pairings = {
  random(some, _features, random) {
    const a = random.below(some.length);
    return [some[a], some[(a + 1 + random.below(some.length - 1)) % some.length]];
  },
  alike(some, features) {
    let best = [some[0], some[1]];
    const apart = ([a, b]) => Math.abs(features[a][0] - features[b][0]);
    for (let a = 0; a < some.length; a++)
      for (let b = a + 1; b < some.length; b++) if (apart([some[a], some[b]]) < apart(best)) best = [some[a], some[b]];
    return best;
  },
  ordinary(some, features, random) {
    const size = (i) => Math.max(...features[i].slice(0, 3).map(Math.abs));
    const inside = some.filter((i) => size(i) <= 1);
    const least = inside.length >= 2 ? inside : [...some].sort((a, b) => size(a) - size(b)).slice(0, 2);
    return pairings.random(least, features, random);
  },
};

/** Votes on two answers to one prompt, by true rewards (Bradley–Terry): indices of items. */
export function voteOn(items, features, reward, seed, { counts = votesOf, pairing = 'random' } = {}) {
  const random = new Random(seed, 0x701e5);
  const byPrompt = new Map();
  for (const [i, { prompt }] of items.entries()) byPrompt.set(prompt, [...(byPrompt.get(prompt) ?? []), i]);
  const prompts = [...byPrompt.values()].filter((some) => some.length >= 2);
  return counts.flatMap((count, u) =>
    Array.from({ length: count }, () => {
      const some = prompts[random.below(prompts.length)];
      const [x, y] = pairings[pairing](some, features, random);
      const difference = reward(u, features[x]) - reward(u, features[y]);
      const [chosen, rejected] = random.uniform() < 1 / (1 + Math.exp(-difference)) ? [x, y] : [y, x];
      return { u, chosen, rejected };
    }),
  );
}
