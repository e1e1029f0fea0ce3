import type { ResolvedConfig } from '../config/index.js';
import { tieNu } from '../losses/ties.js';
import { PluralignError } from '../native/errors.js';
import type { FeatureData } from './data.js';
import { featureModel } from './models/index.js';
import { useThreads } from './native.js';
import { Population } from './population.js';
import { isTie, likeliestNu, type Ties, withTies } from './ties.js';
import type { Votes } from './votes.js';

/** A population, and how its fit ended. */
export type FittedPopulation = Population & { report: { objective: number; steps: number; converged: boolean } };

/**
 * Fits the configured model to votes, ν of ties as well where it is not given. Throws `BAD_DATA` where no vote has a name
 * and the model needs one, and what a fit throws.
 */
export async function fitPopulation(
  config: ResolvedConfig,
  { table, train }: Pick<FeatureData, 'table' | 'train'>,
  note: (text: string) => void,
  signal: AbortSignal | undefined,
): Promise<FittedPopulation> {
  const {
    model: name,
    rank: wanted,
    l2,
    residual,
    batch_size,
    epochs,
    learning_rate: learningRate,
    batches: order,
    columns,
  } = config.features as NonNullable<ResolvedConfig['features']>;
  if (name !== 'global' && train.votes.annotators.length === 0) {
    throw new PluralignError(
      'BAD_DATA',
      `no row names an annotator, expected "annotator" in the rows; or give features.model: global`,
    );
  }
  if (table.d % columns !== 0) {
    throw new PluralignError(
      'BAD_DATA',
      `features.columns: found ${columns} for items of ${table.d} features, expected a number that divides them`,
    );
  }
  const most = table.d / columns;
  const rank = name === 'low-rank' || name === 'mixed' ? Math.min(wanted, most) : wanted;
  if (rank < wanted)
    note(
      `features.rank: ${wanted} is more than the ${most} features${columns > 1 ? ' of a column' : ''}; used ${rank}`,
    );
  const model = featureModel(name, table.d, rank, columns);
  if (config.train.threads !== 'auto') useThreads(config.train.threads);
  const batch =
    name === 'low-rank' && batch_size !== null ? { batch: batch_size, epochs, learningRate, order } : undefined;
  const options = { model: name, rank, l2, seed: config.train.seed, batch, residual: residual ?? l2, signal };
  const fit = async (votes: Votes, ties: Ties | null) => {
    const { parameters, report } = await model.fit(table, votes, options);
    return { report, population: new Population(model, rank, l2, votes.annotators, parameters, ties) };
  };
  const { votes } = train;
  const { ties: type, tie_nu: given } = config.loss;
  if (type === 'drop') {
    const { population, report } = await fit(votes, null);
    return Object.assign(population.withPosteriors(table, votes), { report });
  }
  // ν and the rewards in turn: from the share of ties to the likeliest under the rewards, which soon settles.
  const pairs = [...Array(votes.m).keys()].filter((v) => votes.offsets[v + 1] - votes.offsets[v] === 2);
  const tied = Uint8Array.from(pairs, (v) => (isTie(votes, v) ? 1 : 0));
  const weights = Float64Array.from(pairs, (v) => votes.weights[v]);
  let nu = given ?? tieNu(type, tied.reduce((sum, tie) => sum + tie, 0) / Math.max(1, pairs.length));
  for (let round = 0; ; round++) {
    const counted = withTies(votes, { type, nu });
    const { population, report } = await fit(counted, { type, nu });
    if (given !== null || round === 2 || pairs.length === 0) {
      note(`ties: ${type} with nu ${nu.toPrecision(4)}${given === null ? ', the likeliest' : ''}`);
      return Object.assign(population.withPosteriors(table, counted), { report });
    }
    const scorer = population.scorer(table);
    const differences = Float64Array.from(pairs, (v) => {
      const [one, other] = votes.items.subarray(votes.offsets[v], votes.offsets[v + 1]);
      return scorer(votes.annotator[v], one) - scorer(votes.annotator[v], other);
    });
    nu = likeliestNu(type, differences, tied, weights);
  }
}
