import { checkLayerRuns, type LayerRun } from '../adapters/layers.js';
import { layerOf } from '../adapters/mix.js';
import { PluralignError } from '../native/errors.js';
import { type MergeMethod, weightsOf } from './methods.js';

/** Experts' weights in a run of layers. */
export interface LayerWeights {
  /** The first and the last, from 0; the experts adapt both. */
  layers: LayerRun;
  /** By the experts' names, all of them. */
  weights: Readonly<Record<string, number>>;
}

/** `--layer-weights 0-3`: how a run of layers is named to people. */
const titleOf = ([first, last]: LayerRun) => `--layer-weights ${first === last ? first : `${first}-${last}`}`;

/**
 * The weights of each tensor, in the order of the experts: those of its layer, where some are given, else `weights`. Throws
 * `BAD_ARGUMENT` naming the layers that are not there or given twice, the expert without weight, the weight that is no number
 * or has no expert, and zeros under a method that is not a plain sum.
 *
 * @param tensors names of what is merged
 */
export function weightsByLayer(
  names: readonly string[],
  weights: readonly number[],
  given: readonly LayerWeights[],
  tensors: Iterable<string>,
  method: MergeMethod | null,
): (tensor: string) => readonly number[] {
  const known = new Set<number>();
  for (const tensor of tensors) {
    const layer = layerOf(tensor);
    if (layer !== null) known.add(layer);
  }
  const failAt = (run: LayerRun, message: string): never => {
    throw new PluralignError('BAD_ARGUMENT', `${titleOf(run)}: ${message}`);
  };
  checkLayerRuns(
    given.map(({ layers }) => layers),
    known,
    failAt,
  );
  const byLayer = new Map<number, readonly number[]>();
  for (const { layers, weights: own } of given) {
    const fail = (message: string) => failAt(layers, message);
    const values = weightsOf(names, own, fail);
    if (values.every((w) => w === 0) && method?.combine !== 'sum')
      fail('all are zero, which this method cannot divide by; cat leaves such layers as they are in the base');
    for (let layer = layers[0]; layer <= layers[1]; layer++) byLayer.set(layer, values);
  }
  return (tensor) => {
    const layer = layerOf(tensor);
    return (layer === null ? undefined : byLayer.get(layer)) ?? weights;
  };
}
