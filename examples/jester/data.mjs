// Jester: ratings as votes, jokes as items with the features of a language model beside simple text statistics.
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { statisticNames, statistics, textItems } from '../p-share-lora/people.mjs';
import { generator } from '../p-share-lora/planted.mjs';

export async function readJester(folder, model) {
  const jokes = JSON.parse(await readFile(join(folder, 'jokes.json'), 'utf8'));
  const table = await textItems(jokes, model);
  const ratings = new Map();
  for (const line of (await readFile(join(folder, 'ratings.csv'), 'utf8')).trim().split('\n').slice(1)) {
    const [user, joke, rating] = line.split(',');
    if (!ratings.has(user)) ratings.set(user, []);
    ratings.get(user).push({ item: table.index.get(joke), rating: Number(rating) });
  }
  return {
    table,
    ratings,
    names: statisticNames,
    jokes: jokes.map(({ text }) => ({ text, statistics: statistics(text) })),
  };
}

/**
 * For each of some voters, different pairs of jokes that they rated at least 1 apart. Jokes in `only` (a predicate on
 * items) alone are used for each list; lists of one voter have no pair in common.
 */
export function samplePairs(ratings, voters, lists, random) {
  const out = lists.map(() => []);
  for (const [u, user] of voters.entries()) {
    const rated = ratings.get(user) ?? [];
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

/** What each voter rated beside the jokes of their own pairs, and up to `count` pairs of those. */
export function otherJokes(ratings, voters, pairs, count, random) {
  const used = voters.map(() => new Set());
  for (const [u, better, worse] of pairs) used[u].add(better).add(worse);
  const left = voters.map((user, u) => ratings.get(user).filter(({ item }) => !used[u].has(item)));
  const rest = new Map(voters.map((user, u) => [user, left[u]]));
  const enough = voters.map((user, u) => (left[u].length > 1 ? user : null));
  const [held] = samplePairs(rest, enough, [{ count }], random);
  return { left, held };
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
