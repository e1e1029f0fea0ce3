/** What `addon.kernels` and `addon.bench` take: every field checked and filled in by their callers in lib/. */

/** A call over the rows of one linear layer and its adapters; lib/kernels/lora.ts says what each array is. */
export interface NativeGroupedLora {
  in: number;
  out: number;
  x: Float32Array;
  segments: Int32Array;
  adapters: Int32Array;
  a: Float32Array[];
  b: Float32Array[];
  cores?: (Float32Array | null)[];
  ranks: Int32Array;
  scales: Float64Array;
  h?: Float32Array;
  threads: number;
  abort?: Int32Array;
}

export interface NativeMatmul {
  m: number;
  n: number;
  k: number;
  a: Float32Array;
  b: Float32Array;
  c: Float32Array;
  bias?: Float32Array;
  transposeA: boolean;
  transposeB: boolean;
  accumulate: boolean;
  alpha: number;
  threads: number;
  abort?: Int32Array;
}

export interface NativeKernels {
  groupedLoraForward(call: NativeGroupedLora & { y: Float32Array }): Promise<void>;
  groupedLoraBackward(
    call: NativeGroupedLora & {
      dy: Float32Array;
      dx?: Float32Array;
      da?: (Float32Array | null)[];
      db?: (Float32Array | null)[];
      dcores?: (Float32Array | null)[];
    },
  ): Promise<void>;
  matmul(call: NativeMatmul): Promise<void>;
}

export interface NativeTiming {
  threads: number;
  /** Timed runs; one more warms up. */
  runs: number;
  /** Least seconds of a run: a shorter call is repeated. */
  seconds: number;
  /** Overwrite the caches before every call, and do not repeat it. */
  cold: boolean;
  abort?: Int32Array;
}

/** Each resolves to one number per run: seconds of a call, on random data. */
export interface NativeBench {
  /** Floating-point operations a second of multiply-adds in registers, all threads together. */
  peak(options: NativeTiming & { dtype: string }): Promise<Float64Array>;
  /** A linear layer: C [m × n] = A [m × k] Wᵀ; `packed`: W prepared beforehand, as frozen weights are. */
  gemm(
    options: NativeTiming & { m: number; n: number; k: number; dtype: string; packed: boolean },
  ): Promise<Float64Array>;
  groupedLora(
    options: NativeTiming & {
      in: number;
      out: number;
      r: number;
      adapterCount: number;
      segments: Int32Array;
      adapters: Int32Array;
      dtype: string;
      backward: boolean;
      /** `loop`: dense products segment by segment; `gather`: on copies of the factors, one for each `rowsEach` rows. */
      method: 'grouped' | 'loop' | 'gather';
      rowsEach: number;
    },
  ): Promise<Float64Array>;
  /** An operator of the decoder by name, on `rows` of `width`; `read`: float32 from memory. */
  operator(options: NativeTiming & { name: string; rows: number; width: number; dtype: string }): Promise<Float64Array>;
}
