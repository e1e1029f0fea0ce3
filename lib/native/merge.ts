/** One tensor of a merge, as the addon takes it (native/ops/merge/merge.h says what each word means). */

export type Keep = 'all' | 'magnitude' | 'random' | 'ranked' | 'breadcrumbs';
export type Combine = 'sum' | 'average' | 'elect' | 'slerp' | 'nuslerp' | 'multislerp' | 'stock';

interface ExpertWeight {
  weight: number;
  /** Two words that seed the expert's random draws for this tensor. */
  key: Uint32Array;
}

/** An update of a weight [rows, cols]: scale · B A, or a whole weight less the base. */
export type NativeExpert = ExpertWeight &
  ({ dense: Float32Array } | { a: Float32Array; b: Float32Array; r: number; scale: number });

export interface NativeMergeTensor {
  rows: number;
  cols: number;
  experts: NativeExpert[];
  /** [rows, cols]; absent: zero. */
  base?: Float32Array;
  keep: Keep;
  combine: Combine;
  density: number;
  epsilon: number;
  gamma: number;
  lambda: number;
  /** `factors`: B A of `rank` (0: exact; only where every expert is low-rank and the method is linear); `weight`: base + update. */
  as: 'factors' | 'weight';
  rank: number;
  /** Round the weight to bfloat16. */
  bfloat16: boolean;
  threads: number;
}

export interface NativeMerged {
  rank: number;
  /** [rank, cols] and [rows, rank] with `factors`, else empty. */
  a: Float32Array;
  b: Float32Array;
  /** [rows, cols] with `weight`, else empty. */
  dense: Float32Array;
  /** Frobenius norm of the merged update. */
  norm: number;
  /** Frobenius norm of what truncation to the rank (or rounding of the weight) lost. */
  error: number;
}

export interface NativeMerge {
  mergeTensor(tensor: NativeMergeTensor): Promise<NativeMerged>;
}
