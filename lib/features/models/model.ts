import type { FeatureModelName } from '../../config/schema.js';
import type { ItemSide } from '../bilinear.js';
import type { ItemTable } from '../items.js';
import type { Votes } from '../votes.js';

export { type FeatureModelName, featureModels } from '../../config/schema.js';

export interface BatchOptions {
  /** Votes of a step, at most. */
  batch: number;
  epochs: number;
  learningRate: number;
  /**
   * `random`: every batch has votes on all items. `blocks`: items fall into groups, drawn anew for each pass, and a batch
   * has the votes between two groups: far fewer rows of features to read.
   */
  order: 'random' | 'blocks';
}

export interface FeatureModelOptions {
  model: FeatureModelName;
  /** Size of what is shared: columns of V, basis rewards, prototypes or shared features. */
  rank: number;
  /** Precision of the prior on an annotator's own parameters: the loss Σ votes has l2/2 ‖own‖² added. */
  l2: number;
  /** Mixed alone: precision of the prior on what an annotator has beyond the shared directions; default: l2. */
  residual?: number;
  seed: number;
  /** Low-rank alone: train by mini-batches, for more votes than a fit to convergence has time for. */
  batch?: BatchOptions;
  signal?: AbortSignal;
}

/** Rows of features [n, d]. */
export type Features = Pick<ItemTable, 'features' | 'n' | 'd'> & { file?: string };

/** What all share, as one flat vector, and what is each annotator's own, [N, own]. */
export interface Parameters {
  shared: Float64Array;
  own: Float64Array;
  /** [N, own (own + 1) / 2] lower Cholesky factors of the posteriors' precisions, where they are kept. */
  posterior?: Float64Array;
}

export interface FitReport {
  /** The objective at its end: weighted sum of the votes' losses plus priors. */
  objective: number;
  steps: number;
  converged: boolean;
}

export interface Fitted {
  parameters: Parameters;
  report: FitReport;
}

/**
 * A family of reward models on features: which rewards base_i + points_i·c_u it can express. Every gradient is that of
 * the transpose: `itemsBack` and `userBack` add to the gradients of the parameters.
 */
export interface FeatureRewardModel {
  name: FeatureModelName;
  /** Features of an item. */
  d: number;
  /** The shared vector's parts, in order. */
  layout: { name: string; shape: number[] }[];
  /** Columns of an item's features where they are a matrix; absent: 1. */
  columns?: number;
  /** Numbers that are an annotator's own; 0 for a model of all. */
  own: number;
  /** Length of `points_i` and `c_u`. */
  k: number;
  /** True where rewards are linear in the annotator's own numbers: a new annotator is a convex problem. */
  convex: boolean;
  items(table: Features, shared: Float64Array): ItemSide;
  itemsBack(table: Features, shared: Float64Array, side: ItemSide, gradient: ItemSide, out: Float64Array): void;
  /** c_u [k] of own numbers; writes `out`. */
  user(shared: Float64Array, own: Float64Array, out: Float64Array): void;
  userBack(
    shared: Float64Array,
    own: Float64Array,
    gradient: Float64Array,
    outShared: Float64Array,
    outOwn: Float64Array,
  ): void;
  /** The rewards as weights [d] on the features, where they are linear in them. */
  weights?(shared: Float64Array, c: Float64Array): Float64Array;
  fit(table: Features, votes: Votes, options: FeatureModelOptions): Promise<Fitted>;
  /** Own numbers of whoever is unknown; absent: zeros. */
  generic?(shared: Float64Array): Float64Array;
}

/**
 * Precision of the prior on what all share: l2, but no more than 1. A strong prior on the own parameters must leave the
 * generic reward free; without any prior the shared part could run off along directions that no vote sees.
 */
export function sharedPrecision(l2: number): number {
  return Math.min(1, Math.max(l2, 1e-6));
}

export function sizeOf(layout: FeatureRewardModel['layout']): number {
  return layout.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);
}
