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

/** Tastes of one plane among the first three features, and everyone's true reward of a text. */
export function plant(features, seed) {
  const random = new Random(seed, 0x7a57e);
  const normal = () => [0, 1, 2].map(() => random.normal());
  const unit = (v) => v.map((x) => x / Math.hypot(...v));
  const first = unit(normal());
  const raw = normal();
  const along = raw.reduce((sum, x, k) => sum + x * first[k], 0);
  const second = unit(raw.map((x, k) => x - along * first[k]));
  const tastes = votesOf.map(() => {
    const angle = 2 * Math.PI * random.uniform();
    return first.map((x, k) => strength * (x * Math.cos(angle) + second[k] * Math.sin(angle)));
  });
  return (u, text) => {
    const x = features(text);
    return tastes[u].reduce((sum, t, k) => sum + t * x[k], 0);
  };
}

/** Votes on two answers to one prompt, by everyone's true reward (Bradley–Terry): indices of items. */
export function voteOn(items, reward, seed) {
  const random = new Random(seed, 0x701e5);
  const byPrompt = new Map();
  for (const [i, { prompt }] of items.entries()) byPrompt.set(prompt, [...(byPrompt.get(prompt) ?? []), i]);
  const prompts = [...byPrompt.values()];
  return votesOf.flatMap((count, u) =>
    Array.from({ length: count }, () => {
      const some = prompts[random.below(prompts.length)];
      const a = random.below(some.length);
      const b = (a + 1 + random.below(some.length - 1)) % some.length;
      const [x, y] = [some[a], some[b]];
      const difference = reward(u, items[x].completion) - reward(u, items[y].completion);
      const [chosen, rejected] = random.uniform() < 1 / (1 + Math.exp(-difference)) ? [x, y] : [y, x];
      return { u, chosen, rejected };
    }),
  );
}
