// Jester: ratings as votes, jokes as items with the features of a language model beside simple text statistics.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { embed, itemTable, readItems } from 'pluralign';
import { generator } from '../p-share-lora/planted.mjs';

/** Names of `statistics`. */
const names = [
  'length',
  'words',
  'long words',
  'questions',
  'exclamations',
  'quotations',
  'lines',
  'digits',
  'men',
  'women',
  'I and you',
  'question and answer',
];

/** Numbers that a reader sees at a glance. */
function statistics(text) {
  const words = text.split(/\s+/).filter(Boolean);
  const count = (pattern) => (text.match(pattern) ?? []).length;
  return [
    Math.log(text.length),
    words.length / 50,
    text.length / words.length,
    count(/\?/g),
    count(/!/g),
    count(/"/g) / 2,
    count(/\n/g),
    count(/\d/g),
    count(/\b(he|him|his|man|guy|boy|husband)\b/gi),
    count(/\b(she|her|woman|girl|wife|lady)\b/gi),
    count(/\b(I|you|we|my|your)\b/g),
    count(/^\s*[QA]:/gm),
  ];
}

/** Columns with mean 0 and variance 1/d, so that a reward of weights N(0, 1) has variance 1. */
function standardise(rows) {
  const d = rows[0].length;
  const out = new Float32Array(rows.length * d);
  for (let j = 0; j < d; j++) {
    const column = rows.map((row) => row[j]);
    const mean = column.reduce((a, b) => a + b, 0) / rows.length;
    const sd = Math.sqrt(column.reduce((sum, x) => sum + (x - mean) ** 2, 0) / rows.length) || 1;
    for (let i = 0; i < rows.length; i++) out[i * d + j] = (rows[i][j] - mean) / sd / Math.sqrt(d);
  }
  return { features: out, d };
}

export async function readJester(folder, model) {
  const jokes = JSON.parse(await readFile(join(folder, 'jokes.json'), 'utf8'));
  const temporary = await mkdtemp(join(tmpdir(), 'jester-'));
  const [texts, file] = [join(temporary, 'texts.jsonl'), join(temporary, 'items.safetensors')];
  let hidden;
  try {
    await writeFile(texts, jokes.map(({ id, text }) => `${JSON.stringify({ id, text })}\n`).join(''));
    await embed({ model, data: [texts], output: file, pooling: 'mean', threads: 2 });
    hidden = await readItems(file);
  } finally {
    await rm(temporary, { recursive: true });
  }
  const rows = jokes.map(({ text }, i) => [
    ...hidden.features.subarray(i * hidden.d, (i + 1) * hidden.d),
    ...statistics(text),
  ]);
  const { features, d } = standardise(rows);
  const table = itemTable(
    'jokes',
    jokes.map(({ id }) => `${id}`),
    features,
    d,
  );
  const ratings = new Map();
  for (const line of (await readFile(join(folder, 'ratings.csv'), 'utf8')).trim().split('\n').slice(1)) {
    const [user, joke, rating] = line.split(',');
    if (!ratings.has(user)) ratings.set(user, []);
    ratings.get(user).push({ item: table.index.get(joke), rating: Number(rating) });
  }
  return { table, ratings, names, jokes: jokes.map(({ text }) => ({ text, statistics: statistics(text) })) };
}

/** Typed votes of [annotator, better item, worse item] rows. */
export function votesFrom(annotators, triples) {
  const m = triples.length;
  return {
    annotators,
    annotator: Int32Array.from(triples, (t) => t[0]),
    offsets: Int32Array.from({ length: m + 1 }, (_, v) => 2 * v),
    items: Int32Array.from(triples.flatMap((t) => [t[1], t[2]])),
    stages: new Int32Array(m).fill(1),
    weights: new Float64Array(m).fill(1),
    margins: new Float64Array(m),
    rows: Int32Array.from({ length: m }, (_, v) => v),
    m,
  };
}

/**
 * For each of some voters, different pairs of jokes that they rated at least 1 apart. Jokes in `only` (a predicate on
 * items) alone are used for each list; lists of one voter have no pair in common.
 */
export function samplePairs(ratings, voters, lists, random) {
  const out = lists.map(() => []);
  for (const [u, user] of voters.entries()) {
    const rated = ratings.get(user);
    const seen = new Set();
    for (const [l, { count, only }] of lists.entries()) {
      const pool = only ? rated.filter(({ item }) => only(item)) : rated;
      for (let found = 0, tries = 0; found < count && tries < 60 * count; tries++) {
        const [a, b] = [pool[random.below(pool.length)], pool[random.below(pool.length)]];
        if (!a || Math.abs(a.rating - b.rating) < 1) continue;
        const [better, worse] = a.rating > b.rating ? [a.item, b.item] : [b.item, a.item];
        const key = better * 1000 + worse;
        if (seen.has(key)) continue;
        seen.add(key);
        out[l].push([u, better, worse]);
        found++;
      }
    }
  }
  return out;
}

export function shuffled(list, random) {
  const out = [...list];
  for (let i = out.length - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [out[i], out[j]] = [out[j], out[i]];
  }
  return out;
}

export { generator };
