import type { Group } from '../../data/types.js';
import { sigmoid } from '../../features/likelihood.js';
import type { Tokenizer } from '../../model/tokenizer-types.js';
import { alike } from '../criteria.js';
import { likeliest, type TypedVote, voteLossOf } from '../outcome.js';
import type { TypeDescription } from '../summary.js';
import type { Annotators } from './annotators.js';
import { placesOf } from './votes.js';

const shown = 5;
const longest = 400;

/** Rows that types are compared on: all, or as many as this, evenly spread. */
const most = 1024;

export function sampleRows<T>(rows: readonly T[]): T[] {
  if (rows.length <= most) return [...rows];
  return Array.from({ length: most }, (_, i) => rows[Math.floor((i * rows.length) / most)]);
}

/** Pairs of types that have become one: [k, l] from 0, and the mean difference of their probabilities. */
export function collapsedPolicies(
  votes: readonly TypedVote[],
  types: number,
): { types: [number, number]; difference: number }[] {
  const out: { types: [number, number]; difference: number }[] = [];
  for (let k = 0; k < types; k++) {
    for (let l = k + 1; l < types; l++) {
      let sum = 0;
      let pairs = 0;
      for (const { rewards } of votes) {
        for (let a = 0; a + 1 < rewards[k].length; a++) {
          const p = (own: Float64Array) => sigmoid(own[a] - own[a + 1]);
          sum += Math.abs(p(rewards[k]) - p(rewards[l]));
          pairs++;
        }
      }
      const difference = pairs > 0 ? sum / pairs : 0;
      if (difference < alike) out.push({ types: [k, l], difference });
    }
  }
  return out;
}

const textOf = (tokenizer: Tokenizer, ids: Int32Array): string => {
  const text = tokenizer.decode(ids, { skipSpecial: true });
  return text.length > longest ? `${text.slice(0, longest)}…` : text;
};

/**
 * What sets each type apart: words that its annotators choose and leave more than the others do, and the rows that it finds
 * likelier than some other type by most. `gamma`: K arrays [annotators].
 */
export function describePolicies(
  votes: readonly TypedVote[],
  rows: readonly Group[],
  annotators: Annotators,
  fit: { gamma: readonly Float64Array[]; weights: ArrayLike<number> },
  tokenizer: Tokenizer,
): TypeDescription[] {
  const typeOf = annotators.names.map((_, u) => likeliest(fit.gamma.map((own) => own[u])));
  const words = tellingWords(rows, annotators, typeOf, fit.gamma.length, tokenizer);
  const losses = votes.map(({ rewards, stages }) => rewards.map((own) => voteLossOf(own, stages)));
  return fit.gamma.map((_, k) => ({
    type: k + 1,
    weight: fit.weights[k],
    annotators: typeOf.filter((type) => type === k).length,
    ...words[k],
    features: [],
    rows: losses
      .map((own, v) => ({ v, difference: Math.max(...own) - own[k] }))
      .sort((a, b) => b.difference - a.difference)
      .slice(0, shown)
      .map(({ v, difference }) => {
        const { group } = votes[v];
        const places = placesOf(group);
        return {
          row: group.index,
          file: group.origin.file,
          line: group.origin.line,
          difference,
          prompt: textOf(tokenizer, group.prompt),
          preferred: textOf(tokenizer, group.completions[places[0]]),
          other: textOf(tokenizer, group.completions[places[places.length - 1]]),
        };
      }),
  }));
}

/** Words are compared by how often; rarer ones tell little. */
const rarest = 5;

/**
 * Words that a type's annotators choose (and leave) more than all others do: log-odds of chosen against rejected, against
 * those of the other types, in standard errors (Monroe, Colaresi and Quinn 2008, with half a count as the prior).
 */
function tellingWords(
  rows: readonly Group[],
  annotators: Annotators,
  typeOf: readonly number[],
  types: number,
  tokenizer: Tokenizer,
): { likes: string[]; dislikes: string[] }[] {
  const counts = Array.from({ length: types }, () => ({
    chosen: new Map<string, number>(),
    left: new Map<string, number>(),
  }));
  const add = (to: Map<string, number>, text: string) => {
    for (const word of new Set(text.toLowerCase().match(/[\p{L}\p{N}’']+/gu) ?? []))
      to.set(word, (to.get(word) ?? 0) + 1);
  };
  rows.forEach((row, i) => {
    const own = counts[typeOf[annotators.of[i]]];
    const places = placesOf(row);
    const text = (c: number) => tokenizer.decode(row.completions[c], { skipSpecial: true });
    add(own.chosen, text(places[0]));
    add(own.left, text(places[places.length - 1]));
  });
  const total = (side: 'chosen' | 'left', word: string) => counts.reduce((n, own) => n + (own[side].get(word) ?? 0), 0);
  const words = new Set(counts.flatMap(({ chosen, left }) => [...chosen.keys(), ...left.keys()]));
  const frequent = [...words].filter((word) => total('chosen', word) + total('left', word) >= rarest);
  return counts.map((own) => {
    const scored = frequent.map((word) => {
      const [a, b] = [(own.chosen.get(word) ?? 0) + 0.5, (own.left.get(word) ?? 0) + 0.5];
      const [c, d] = [total('chosen', word) - a + 1, total('left', word) - b + 1];
      const odds = types > 1 ? Math.log(a / b) - Math.log(c / d) : Math.log(a / b);
      return { word, z: odds / Math.sqrt(1 / a + 1 / b + (types > 1 ? 1 / c + 1 / d : 0)) };
    });
    scored.sort((x, y) => y.z - x.z);
    return {
      likes: scored
        .filter(({ z }) => z > 2)
        .slice(0, shown)
        .map(({ word }) => word),
      dislikes: scored
        .filter(({ z }) => z < -2)
        .slice(-shown)
        .reverse()
        .map(({ word }) => word),
    };
  });
}
