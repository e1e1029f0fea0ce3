import { adapterConfig } from '../adapters/config.js';
import { writePeft } from '../adapters/peft.js';
import type { Tensor } from '../model/safetensors.js';
import { PluralignError } from '../native/errors.js';
import { type AdapterExpert, type ExpertModule, factorTensor, headTensor } from './expert.js';
import { isLowRank, mergeMethods } from './methods.js';
import { lowRank, type MergePlan, mergeTensor, type TensorReport } from './tensor.js';

export interface Watch {
  /** Called after each tensor. Throws to stop. */
  step(elements: number): void;
}

/** `score` of reward models has no base to take an update from: its weighted sum, for methods that are weighted sums. */
function mergeHeads(experts: readonly AdapterExpert[], plan: MergePlan, method: string): Tensor {
  const { keep, combine } = plan.method;
  if (keep !== 'all' || (combine !== 'sum' && combine !== 'average'))
    throw new PluralignError(
      'UNSUPPORTED',
      `${method} of reward models: a reward head has no base to take an update from; use cat, svd or linear`,
    );
  const total = combine === 'average' ? plan.weights.reduce((sum, w) => sum + w, 0) : 1;
  const heads = experts.map((expert) => expert.files.read(headTensor));
  const sums = Float64Array.from(heads[0], () => 0);
  heads.forEach((head, e) => {
    for (let i = 0; i < sums.length; i++) sums[i] += (plan.weights[e] / total) * plan.settings.lambda * head[i];
  });
  return { shape: [1, sums.length], data: Float32Array.from(sums) };
}

/**
 * Merges adapters of one base into a PEFT folder. `rank`: of the result; null: exact (only where the method keeps rank
 * low), or the experts' largest where the method says so. The scale is in the factors (α = r).
 */
export async function mergeAdapters(
  experts: readonly AdapterExpert[],
  plan: MergePlan,
  method: string,
  rank: number | null,
  output: string,
  watch: Watch,
): Promise<TensorReport[]> {
  if (rank === null && !isLowRank(plan.method))
    throw new PluralignError(
      'BAD_ARGUMENT',
      `${method}: its result is not of low rank; give --rank R for its best approximation, or --model DIR for a whole model`,
    );
  const tensors = new Map<string, Tensor>();
  const reports: TensorReport[] = [];
  for (const [module, { in: cols, out: rows }] of experts[0].modules) {
    const largest = Math.max(...experts.map((expert) => expert.modules.get(module)!.r));
    const wanted = rank ?? (plan.method.rank === 'largest' ? largest : 0);
    const merged = await mergeTensor(
      plan,
      module,
      [rows, cols],
      experts.map((expert) => lowRank(expert, module)),
      { as: 'factors', rank: wanted, bfloat16: false },
    );
    tensors.set(`${module}.lora_A`, { shape: [merged.rank, cols], data: merged.a });
    tensors.set(`${module}.lora_B`, { shape: [rows, merged.rank], data: merged.b });
    reports.push({ name: module, rank: merged.rank, norm: merged.norm, error: merged.error });
    watch.step(rows * cols);
  }
  if (experts[0].head) tensors.set('score', mergeHeads(experts, plan, method));
  await writeMerged(experts, new Map(reports.map((r) => [r.name, r.rank!])), null, tensors, output);
  return reports;
}

/**
 * Averages A and B apart: Σ w A and Σ w B under the experts' common scale. Wrong unless a factor is the same in all
 * experts; the report's error says by how much. Throws `BAD_SHAPE` where ranks or scales differ.
 */
export async function averageFactors(
  experts: readonly AdapterExpert[],
  plan: Omit<MergePlan, 'method'>,
  output: string,
  watch: Watch,
): Promise<TensorReport[]> {
  const tensors = new Map<string, Tensor>();
  const reports: TensorReport[] = [];
  // The size of the true average of updates, and of its difference from the product of averaged factors.
  const missed = async (
    module: string,
    first: ExpertModule,
    weights: readonly number[],
    mean: { a: Float32Array; b: Float32Array },
  ) => {
    const shape = [first.out, first.in] as const;
    const updates = experts.map((expert) => lowRank(expert, module));
    const wanted = { as: 'factors', rank: 0, bfloat16: false } as const;
    const sum: MergePlan = { ...plan, method: mergeMethods.cat, weights, weightsOf: undefined };
    const { norm } = await mergeTensor(sum, module, shape, updates, wanted);
    const difference = { ...sum, weights: [...sum.weights, -1] };
    const other = { ...mean, r: first.r, scale: first.scale };
    const { norm: error } = await mergeTensor(difference, module, shape, [...updates, other], wanted);
    return { norm, error };
  };
  const average = (tensor: string, weights: readonly number[]): Float32Array => {
    const parts = experts.map((expert) => expert.files.read(tensor));
    return Float32Array.from(parts[0], (_, i) => parts.reduce((sum, part, e) => sum + weights[e] * part[i], 0));
  };
  const shares = (weights: readonly number[]): number[] => {
    const total = weights.reduce((sum, w) => sum + w, 0);
    if (total !== 0) return weights.map((w) => w / total);
    throw new PluralignError('BAD_ARGUMENT', 'the weights add up to 0: factor_average divides by their sum');
  };
  for (const [module, first] of experts[0].modules) {
    const other = experts.find(({ modules }) => {
      const m = modules.get(module)!;
      return m.r !== first.r || m.scale !== first.scale;
    });
    if (other)
      throw new PluralignError(
        'BAD_SHAPE',
        `factor_average: ${module} has rank ${first.r} and scale ${first.scale} in '${experts[0].name}', ` +
          `${other.modules.get(module)!.r} and ${other.modules.get(module)!.scale} in '${other.name}'`,
      );
    const weights = shares(plan.weightsOf?.(module) ?? plan.weights);
    const a = average(factorTensor(module, 'A'), weights);
    const b = average(factorTensor(module, 'B'), weights);
    tensors.set(`${module}.lora_A`, { shape: [first.r, first.in], data: a });
    tensors.set(`${module}.lora_B`, { shape: [first.out, first.r], data: b });
    reports.push({ name: module, rank: first.r, ...(await missed(module, first, weights, { a, b })) });
    watch.step(first.in * first.out);
  }
  if (experts[0].head)
    tensors.set('score', {
      shape: experts[0].files.shapes.get(headTensor)!,
      data: average(headTensor, shares(plan.weights)),
    });
  await writeMerged(experts, new Map(reports.map((r) => [r.name, r.rank!])), experts[0], tensors, output);
  return reports;
}

/** Ranks as a default (the most frequent) and a pattern of whole names for the rest; α alike, so that the scale is 1. */
async function writeMerged(
  experts: readonly AdapterExpert[],
  ranks: ReadonlyMap<string, number>,
  scaledAs: AdapterExpert | null,
  tensors: ReadonlyMap<string, Tensor>,
  output: string,
): Promise<void> {
  const { config: first, taskType, revision } = experts[0].peft;
  const baseModel = experts.find((expert) => expert.peft.baseModel !== null)?.peft.baseModel ?? null;
  const counts = new Map<number, number>();
  for (const r of ranks.values()) counts.set(r, (counts.get(r) ?? 0) + 1);
  const r = [...counts].sort((a, b) => b[1] - a[1] || b[0] - a[0])[0][0];
  const pattern = Object.fromEntries([...ranks].filter(([, rank]) => rank !== r));
  const config = adapterConfig({
    targets: first.targets,
    excludeModules: first.excludeModules,
    layersToTransform: first.layersToTransform,
    layersPattern: first.layersPattern,
    modulesToSave: first.modulesToSave,
    r,
    ...(scaledAs
      ? {
          alpha: scaledAs.peft.config.alpha,
          r: scaledAs.peft.config.r,
          rankPattern: scaledAs.peft.config.rankPattern,
          alphaPattern: scaledAs.peft.config.alphaPattern,
          rslora: scaledAs.peft.config.rslora,
        }
      : { alpha: r, rankPattern: pattern, alphaPattern: pattern }),
  });
  await writePeft(output, { config, taskType, baseModel, revision }, tensors, 'the merged adapter');
}
