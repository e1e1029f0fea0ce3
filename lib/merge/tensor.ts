import { createHash } from 'node:crypto';
import { addon } from '../native/loader.js';
import type { NativeExpert, NativeMerged, NativeMergeTensor } from '../native/merge.js';
import { type AdapterExpert, factorTensor } from './expert.js';
import type { MergeMethod, MergeSettings } from './methods.js';

/** What every tensor of one merge has in common. */
export interface MergePlan {
  method: MergeMethod;
  settings: MergeSettings;
  /** In the order of the experts. */
  weights: readonly number[];
  /** Of a tensor, where layers have weights of their own; absent: `weights`. */
  weightsOf?: (tensor: string) => readonly number[];
  seed: number;
  threads: number;
}

/** Size and loss of one merged tensor. */
export interface TensorReport {
  name: string;
  /** Absent for a whole weight. */
  rank?: number;
  /** Frobenius norm of the merged update. */
  norm: number;
  /** Frobenius norm of what truncation to the rank, or rounding to the file's type, lost of it. */
  error: number;
}

/** Seeds an expert's draws for one tensor: from the seed, its place and the tensor's name alone. */
export function drawKey(seed: number, expert: number, tensor: string): Uint32Array {
  const hash = createHash('sha256').update(`${seed} ${expert} ${tensor}`).digest();
  return Uint32Array.of(hash.readUInt32LE(0), hash.readUInt32LE(4));
}

/** An adapter's update of one linear. */
export function lowRank(
  expert: AdapterExpert,
  module: string,
): { a: Float32Array; b: Float32Array; r: number; scale: number } {
  const { r, scale } = expert.modules.get(module)!;
  return {
    a: expert.files.read(factorTensor(module, 'A')),
    b: expert.files.read(factorTensor(module, 'B')),
    r,
    scale,
  };
}

type Update = { dense: Float32Array } | ReturnType<typeof lowRank>;

/** Merges one weight `tensor`; `updates` in the order of the experts, an expert that leaves it alone has null. */
export function mergeTensor(
  plan: MergePlan,
  tensor: string,
  shape: readonly [number, number],
  updates: readonly (Update | null)[],
  wanted: Pick<NativeMergeTensor, 'as' | 'rank' | 'bfloat16' | 'base'>,
): Promise<NativeMerged> {
  const [rows, cols] = shape;
  const { keep, combine } = plan.method;
  const weights = plan.weightsOf?.(tensor) ?? plan.weights;
  const none = () => ({ a: new Float32Array(cols), b: new Float32Array(rows), r: 1, scale: 1 });
  const experts = updates.map(
    (update, i): NativeExpert => ({
      ...(update ?? none()),
      weight: weights[i],
      key: drawKey(plan.seed, i, tensor),
    }),
  );
  return addon().mergeTensor({
    rows,
    cols,
    experts,
    keep,
    combine,
    ...plan.settings,
    ...wanted,
    threads: plan.threads,
  });
}
