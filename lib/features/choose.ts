import { Random } from '../base/random.js';
import type { ResolvedConfig } from '../config/index.js';
import type { ResolvedFeatures } from '../config/schema.js';
import { PluralignError } from '../native/errors.js';
import type { FeatureData, VoteData } from './data.js';
import { evaluateVotes } from './evaluate.js';
import { fitPopulation } from './fit.js';
import { subVotes, votesByAnnotator } from './votes.js';

/** A setting of the model, and how likely it makes votes that it was not fitted to. */
export type Tried = Pick<ResolvedFeatures, 'model' | 'rank' | 'l2' | 'residual'> & {
  /** Mean natural-log likelihood of the votes held out. */
  log_likelihood: number;
};

/**
 * `features.choose`: every setting of its lists is fitted to the training votes but a share of each annotator's, and the one
 * that makes those likeliest is taken. Null where nothing is to be chosen. `tried`: best first.
 */
export async function likeliestSetting(
  config: ResolvedConfig,
  { table, train }: FeatureData,
  note: (text: string) => void,
  signal: AbortSignal | undefined,
): Promise<{ config: ResolvedConfig; tried: Tried[] } | null> {
  const features = config.features as ResolvedFeatures;
  if (!features.choose) return null;
  const [rest, held] = heldOut(train, features.choose.held_out, config.train.seed);
  if (held.votes.m === 0)
    throw new PluralignError(
      'BAD_DATA',
      'features.choose: no annotator has a vote to hold out, expected one with two votes or more; name the setting instead',
    );
  const tried: Tried[] = [];
  for (const setting of settingsOf(features)) {
    const trial = { ...config, features: { ...features, ...setting, choose: null } };
    const population = await fitPopulation(trial, { table, train: rest }, () => {}, signal);
    const scorer = population.scorer(table);
    const { overall } = evaluateVotes(held, population.annotators.length, scorer, population.ties);
    tried.push({ ...setting, log_likelihood: overall.log_likelihood });
  }
  tried.sort((a, b) => b.log_likelihood - a.log_likelihood);
  const { log_likelihood: value, ...best } = tried[0];
  note(
    `features.choose: ${describe(best)} is the likeliest of ${tried.length} settings on ${held.votes.m} votes held out (${value.toFixed(4)} a vote)`,
  );
  return { config: { ...config, features: { ...features, ...best, choose: null } }, tried };
}

function describe({ model, rank, l2, residual }: Omit<Tried, 'log_likelihood'>): string {
  const of = model === 'global' || model === 'local' ? '' : ` of rank ${rank}`;
  return `${model}${of}, l2 ${l2}${residual === null ? '' : `, residual ${residual}`}`;
}

/** Every combination once: one for all and one for each have no rank, and only `mixed` has a remainder. */
export function settingsOf(features: ResolvedFeatures): Omit<Tried, 'log_likelihood'>[] {
  const { choose } = features;
  const of = <T>(list: readonly T[] | null | undefined, own: T) => (list && list.length > 0 ? list : [own]);
  return of(choose?.model, features.model).flatMap((model) => {
    const ranked = model !== 'global' && model !== 'local';
    const ranks = ranked ? of(choose?.rank, features.rank) : [features.rank];
    const residuals = model === 'mixed' ? of<number | null>(choose?.residual, features.residual) : [null];
    return ranks.flatMap((rank) =>
      of(choose?.l2, features.l2).flatMap((l2) => residuals.map((residual) => ({ model, rank, l2, residual }))),
    );
  });
}

/** A share of each annotator's votes apart, by the seed; everyone keeps one at least. */
export function heldOut({ votes, rows }: VoteData, share: number, seed: number): [VoteData, VoteData] {
  const by = votesByAnnotator(votes);
  const random = new Random(seed, 0xc405e);
  const apart = new Uint8Array(votes.m);
  for (let u = 0; u < votes.annotators.length; u++) {
    const own = by.votes.subarray(by.offsets[u], by.offsets[u + 1]);
    // Rounded at random, so that annotators of few votes give their share as well.
    const count = Math.min(own.length - 1, Math.floor(share * own.length + random.uniform()));
    const left = [...own];
    for (let i = 0; i < count; i++) apart[left.splice(random.below(left.length), 1)[0]] = 1;
  }
  const part = (side: number): VoteData => {
    const which = Int32Array.from([...apart.keys()].filter((v) => apart[v] === side));
    return { votes: subVotes(votes, which), rows: Array.from(which, (v) => rows[v]) };
  };
  return [part(0), part(1)];
}
