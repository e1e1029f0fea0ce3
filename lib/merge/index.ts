import { realpathSync } from 'node:fs';
import { weightFiles } from '../model/folder.js';
import { resolveModel } from '../model/hub.js';
import { threadCount } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { averageFactors, mergeAdapters, type Watch } from './adapters.js';
import { type AdapterExpert, checkAlike, checkBase, type ExpertFolder, openExpert, TensorFiles } from './expert.js';
import { type LayerWeights, weightsByLayer } from './layers.js';
import {
  factorAverage,
  isLowRank,
  type MergeSettings,
  mergeMethods,
  mergeSettings,
  mergeWeights,
  methodNames,
} from './methods.js';
import { mergeModels } from './models.js';
import type { TensorReport } from './tensor.js';

export interface MergeOptions extends Partial<MergeSettings> {
  /** Base of whole models, and of adapters that become one: a folder or `hf:owner/name`. */
  model?: string;
  /** Adapters (PEFT folders) or whole models, at least one. */
  experts: readonly ExpertFolder[];
  /** By the experts' names; default: 1/N each. */
  weights?: Readonly<Record<string, number>>;
  /** Other weights in some layers. */
  layerWeights?: readonly LayerWeights[];
  /** One of `methodNames`. */
  method: string;
  /** Rank of the merged adapter; default: exact where the method keeps rank low (for `svd` the largest of the experts). */
  rank?: number;
  /** Default: an adapter where the result is of low rank or `rank` is given, else a whole model. */
  as?: 'adapter' | 'model';
  output: string;
  /** Of random draws (DARE, DELLA); default 0. */
  seed?: number;
  /** Bytes that one tensor's merge may take; default: 60 % of what is free. */
  memory?: number;
  /** Largest shard of a whole model in bytes; default 5 GB. */
  shardSize?: number;
  threads?: 'auto' | number;
  signal?: AbortSignal;
  /** Elements of weights merged so far, of all. */
  onProgress?: (done: number, total: number) => void;
  onWarning?: (text: string) => void;
}

export interface MergeReport {
  method: string;
  weights: Record<string, number>;
  /** Where layers have weights of their own. */
  layerWeights?: readonly LayerWeights[];
  kind: 'adapter' | 'model';
  output: string;
  /** Frobenius norms over all tensors: of the merged update, and of what truncation (of a whole model: rounding) lost. */
  norm: number;
  error: number;
  tensors: TensorReport[];
}

const suffix = (given: string) => {
  const near = methodNames.filter((name) => name.replace(/_/g, '') === given.toLowerCase().replace(/[-_]/g, ''));
  return near.length ? `; did you mean ${near[0]}?` : '';
};

/**
 * Merges experts on one base by their updates ΔW (arXiv 2310.11564 merges after training; formulas by method in
 * native/ops/merge/merge.h). Experts of other ranks, α and scalings meet as the updates they are.
 *
 * Throws `BAD_ARGUMENT` for an unknown method, weights that do not fit (`mergeWeights`), a setting the method does not take,
 * or experts of different bases; `BAD_SHAPE` for different targets or shapes; `BAD_FILE` for values that are not finite, all
 * naming expert and tensor; `OUT_OF_MEMORY` where one tensor exceeds the budget.
 */
export async function mergeExperts(options: MergeOptions): Promise<MergeReport> {
  const { method: name, output } = options;
  if (!methodNames.includes(name))
    throw new PluralignError(
      'BAD_ARGUMENT',
      `--method: ${JSON.stringify(name)} is not known${suffix(name)}; expected ${methodNames.join(', ')}`,
    );
  const method = name === factorAverage ? null : mergeMethods[name];
  const { density, epsilon, gamma, lambda } = options;
  const settings = mergeSettings(name, method, { density, epsilon, gamma, lambda });
  const { experts: folders } = options;
  if (folders.length === 0) throw new PluralignError('BAD_ARGUMENT', 'a merge needs at least one --adapter');
  const names = folders.map((folder) => folder.name);
  const twice = names.find((n, i) => names.indexOf(n) !== i);
  if (twice !== undefined) throw new PluralignError('BAD_ARGUMENT', `two experts are named '${twice}'`);
  const weights = mergeWeights(names, options.weights);
  if (method?.experts !== undefined && folders.length !== method.experts)
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${name} is between two experts, found ${folders.length}; multi_slerp takes more`,
    );
  if (method?.unweighted && weights.some((w) => w !== weights[0]))
    throw new PluralignError('BAD_ARGUMENT', `${name} counts all experts alike; leave --weights away`);
  const { layerWeights = [] } = options;
  if (method?.unweighted && layerWeights.length > 0)
    throw new PluralignError('BAD_ARGUMENT', `${name} counts all experts alike; leave --layer-weights away`);
  const { rank = null } = options;
  if (rank !== null && !(Number.isSafeInteger(rank) && rank > 0))
    throw new PluralignError('BAD_ARGUMENT', `--rank: found ${rank}, expected a positive whole number`);

  const experts = await Promise.all(folders.map(openExpert));
  const adapters = experts.filter((expert): expert is AdapterExpert => expert.kind === 'adapter');
  if (adapters.length > 0) checkAlike(adapters);
  const baseDir = options.model === undefined ? null : await resolveModel(options.model);
  const base = baseDir === null ? null : new TensorFiles(weightFiles(baseDir));
  if (base) checkBase(experts, base, baseDir!);
  refuseOverwrite(output, [...folders.map((folder) => folder.dir), ...(baseDir ? [baseDir] : [])]);

  const whole = adapters.length < experts.length;
  const low = !whole && (method === null || isLowRank(method));
  const kind = options.as ?? (low || (rank !== null && !whole) || (base === null && !whole) ? 'adapter' : 'model');
  if (kind === 'adapter' && whole)
    throw new PluralignError(
      'BAD_ARGUMENT',
      'whole models merge into a whole model, not into an adapter; leave --rank away',
    );
  if (kind === 'model' && rank !== null)
    throw new PluralignError('BAD_ARGUMENT', '--rank is the rank of an adapter; a whole model has none');
  // The largest rank of whole models is any: `svd` of them is their sum.
  if (kind === 'model' && method?.rank === 'largest' && !(name === 'svd' && whole))
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${name} is the best approximation of a rank, and a whole model has none; give --method ` +
        `${name === 'svd' ? 'cat' : name.replace(/_svd$/, '')}${whole ? '' : ', or leave it an adapter'}`,
    );
  if (kind === 'model' && base === null)
    throw new PluralignError('BAD_ARGUMENT', 'a whole model needs its base: give --model DIR');
  if (kind === 'model' && (method === null || adapters.some((adapter) => adapter.head)))
    throw new PluralignError(
      'UNSUPPORTED',
      method === null
        ? `${factorAverage} is of adapters alone`
        : 'adapters with a reward head do not merge into a whole model',
    );

  const sizes =
    kind === 'adapter'
      ? [...adapters[0].modules.values()].map((m) => m.in * m.out)
      : [...base!.shapes.values()].map((shape) => shape.reduce((n, size) => n * size, 1));
  const total = sizes.reduce((sum, n) => sum + n, 0);
  let done = 0;
  const watch: Watch = {
    step: (elements) => {
      options.signal?.throwIfAborted();
      done += elements;
      options.onProgress?.(done, total);
    },
  };
  const own = kind === 'adapter' ? adapters[0].modules : base!.shapes;
  const weightsOf =
    layerWeights.length > 0 ? weightsByLayer(names, weights, layerWeights, own.keys(), method) : undefined;
  const plan = { settings, weights, weightsOf, seed: options.seed ?? 0, threads: threadCount(options.threads) };
  let tensors: TensorReport[];
  if (method === null) {
    options.onWarning?.(
      `${factorAverage} averages A and B apart: where the A's differ most of every update is lost. Use linear or cat.`,
    );
    if (rank !== null)
      throw new PluralignError('BAD_ARGUMENT', `${factorAverage} keeps the experts' rank; leave --rank away`);
    tensors = await averageFactors(adapters, plan, output, watch);
  } else if (kind === 'adapter') {
    tensors = await mergeAdapters(adapters, { ...plan, method }, name, rank, output, watch);
  } else {
    tensors = await mergeModels(experts, base!, baseDir!, { ...plan, method }, options, watch);
  }
  const size = (key: 'norm' | 'error') => Math.hypot(...tensors.map((t) => t[key]));
  return {
    method: name,
    weights: Object.fromEntries(names.map((n, i) => [n, weights[i]])),
    ...(layerWeights.length > 0 && { layerWeights }),
    kind,
    output,
    norm: size('norm'),
    error: size('error'),
    tensors,
  };
}

/** Files are mapped while they are merged: writing over them would read what was written. */
function refuseOverwrite(output: string, inputs: readonly string[]): void {
  const real = (path: string) => {
    try {
      return realpathSync(path);
    } catch {
      return null;
    }
  };
  const place = real(output);
  const same = place === null ? undefined : inputs.find((dir) => real(dir) === place);
  if (same !== undefined)
    throw new PluralignError('BAD_ARGUMENT', `--output ${output} is ${same}, which is merged; give another folder`);
}

export type { ExpertFolder } from './expert.js';
export type { LayerWeights } from './layers.js';
export { methodNames } from './methods.js';
export type { TensorReport } from './tensor.js';
