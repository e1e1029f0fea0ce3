import type { VoteData } from '../../features/data.js';
import { voteLoss } from '../../features/likelihood.js';
import type { TypeDescription } from '../summary.js';
import { type MixtureProblem, spreads } from './problem.js';

const shown = 5;

/** What sets each type apart. `items`: K arrays [n] of items' rewards; `rewards`: K arrays [d]. */
export function describeTypes(
  problem: MixtureProblem,
  data: VoteData,
  ids: readonly string[],
  fit: { rewards: readonly Float64Array[]; weights: ArrayLike<number>; likeliest: readonly number[] },
  items: readonly Float64Array[],
): TypeDescription[] {
  const spread = spreads(problem);
  const { votes } = data;
  const losses = items.map((own) =>
    Float64Array.from({ length: votes.m }, (_, v) => {
      const places = votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]);
      const rewards = Float64Array.from(places, (item) => own[item]);
      return voteLoss(rewards, votes.stages[v], votes.margins[v], new Float64Array(places.length));
    }),
  );
  return fit.rewards.map((beta, k) => {
    const order = [...items[k].keys()].sort((a, b) => items[k][b] - items[k][a]);
    const mean = (j: number) => fit.rewards.reduce((sum, other) => sum + other[j] / fit.rewards.length, 0);
    const features = problem.features
      ? [...beta.keys()]
          .map((feature) => ({ feature, difference: (beta[feature] - mean(feature)) * spread[feature] }))
          .sort((a, b) => Math.abs(b.difference) - Math.abs(a.difference))
          .slice(0, shown)
      : [];
    const difference = (v: number) => Math.max(...losses.map((loss) => loss[v])) - losses[k][v];
    const rows = [...data.rows.keys()]
      .map((v) => ({ v, difference: difference(v) }))
      .sort((a, b) => b.difference - a.difference)
      .slice(0, shown)
      .map(({ v, difference }) => ({
        row: data.rows[v].index,
        file: data.rows[v].origin.file,
        line: data.rows[v].origin.line,
        difference,
      }));
    return {
      type: k + 1,
      weight: fit.weights[k],
      annotators: fit.likeliest.filter((type) => type === k).length,
      likes: order.slice(0, shown).map((i) => ids[i]),
      dislikes: order
        .slice(-shown)
        .reverse()
        .map((i) => ids[i]),
      features,
      rows,
    };
  });
}
