import { join } from 'node:path';
import type { Bank } from '../adapters/bank.js';
import { writeFileAtomic } from '../base/files.js';
import type { Group } from '../data/types.js';
import { orderedPairs } from '../data/voters.js';
import { along, every, principal, round, sketch, type TasteAxis, type VoterMap } from '../evaluation/plane.js';

const mostVoters = 2000;
/** Numbers of a voter that a picture needs; more are sketched. */
const mostNumbers = 1024;

/**
 * Annotators on the plane that holds most of how what is theirs (of the factors) differs, and what the third of them at each
 * end of its axes prefers. Null for fewer than three, or where nobody differs.
 *
 * @param bank the generic adapter first, then the annotators' in this order
 */
export function adapterMap(bank: Bank, annotators: readonly string[], groups: readonly Group[]): VoterMap | null {
  const count = annotators.length;
  const width = count > 0 ? bank.ownValues(1).length : 0;
  if (count < 3 || width === 0) return null;
  const shown = every(count, mostVoters);
  const places = shown.map((u) => sketch(bank.ownValues(u + 1), mostNumbers));
  const size = places[0].length;
  const centre = new Float64Array(size);
  for (const place of places) for (let c = 0; c < size; c++) centre[c] += place[c] / places.length;
  for (const place of places) for (let c = 0; c < size; c++) place[c] -= centre[c];
  const spread = places.reduce((sum, place) => sum + along(place, place), 0);
  if (!(spread > 1e-18)) return null;
  const first = principal(places, []);
  const axes = width > 1 ? [first, principal(places, [first])] : [first];
  const at = axes.map((axis) => places.map((place) => along(place, axis)));
  const longer = longerVotes(groups);
  return {
    voters: shown.map((u, i) => ({ name: annotators[u], x: round(at[0][i]), y: round(at[1]?.[i] ?? 0) })),
    of: count,
    axes: at.map((values): TasteAxis => {
      const order = [...values.keys()].sort((a, b) => values[a] - values[b]);
      const third = Math.max(1, Math.floor(order.length / 3));
      const prefer = (some: number[]) => {
        const [votes, long] = some.reduce(
          ([n, l], i) => {
            const of = longer.get(annotators[shown[i]]);
            return [n + (of?.votes ?? 0), l + (of?.longer ?? 0)];
          },
          [0, 0],
        );
        return votes > 0 ? [`the longer answer in ${Math.round((100 * long) / votes)} % of ${votes} choices`] : [];
      };
      return {
        share: values.reduce((sum, x) => sum + x * x, 0) / spread,
        low: prefer(order.slice(0, third)),
        high: prefer(order.slice(-third)),
      };
    }),
  };
}

/** RUN/voters.json, which the report draws. */
export async function writeAdapterMap(dir: string, ...of: Parameters<typeof adapterMap>): Promise<void> {
  await writeFileAtomic(join(dir, 'voters.json'), JSON.stringify({ kind: 'adapters', map: adapterMap(...of) }));
}

/** By annotator: choices between answers of unequal length, and how many of them took the longer one. */
function longerVotes(groups: readonly Group[]): Map<string, { votes: number; longer: number }> {
  const out = new Map<string, { votes: number; longer: number }>();
  for (const group of groups) {
    if (group.annotator === undefined || group.tie) continue;
    const of = out.get(group.annotator) ?? { votes: 0, longer: 0 };
    for (const [better, worse] of orderedPairs(group)) {
      const [a, b] = [group.completions[better].length, group.completions[worse].length];
      if (a === b) continue;
      of.votes++;
      if (a > b) of.longer++;
    }
    out.set(group.annotator, of);
  }
  return out;
}
