/** The native addon as TypeScript sees it: the one seam between `lib/` and `native/bindings/`. */

import type { NativeBilinear } from './bilinear.js';
import type { NativeGenerations } from './generation.js';
import type { NativeBench, NativeKernels } from './kernels.js';
import type { NativeMerge } from './merge.js';

export type DType = 'float32' | 'bfloat16';

/** What a model runs with. */
export interface NativeRuntime {
  dtype: DType;
  threads: number;
  /** A device library and the number of its device; absent: the CPU. */
  library?: string;
  ordinal?: number;
}

/** What the decoder needs to know of a model; made from `config.json` by `lib/model/config.ts`. */
export interface NativeModelConfig {
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  normEps: number;
  /** Inverse frequencies of the rotary embedding, [headDim / 2]; rope scaling is already in them. */
  ropeInverseFrequencies: Float64Array;
  /** Factor on the rotary cosines and sines (1 but for some scalings). */
  ropeAttentionFactor: number;
  /** Keys at a distance of this many positions or more are not seen; 0: no window. */
  slidingWindow: number;
  /** Norm on every query and key head before the rotation (Qwen3). */
  qkNorm: boolean;
  /** True where the head is the embedding matrix. */
  tied: boolean;
}

/**
 * A forest of segments without padding. A prompt is a segment, its completions are segments whose parent is the prompt.
 * Segments stand so that a parent comes before its children, all segments that need a gradient come first, and segments
 * of one adapter stand together.
 */
export interface NativePack {
  /** Token ids, [tokens]. */
  tokens: Int32Array;
  /** First token of each segment and the end of the last, [segments + 1]. */
  segmentStarts: Int32Array;
  /** Parent segment, or -1 for a root, [segments]. */
  parents: Int32Array;
  /** Adapter index in the bank, or -1 for the base, [segments]. A child has its parent's adapter. */
  adapters: Int32Array;
  /** 1 where activations are kept for a backward pass, [segments]. */
  needsGrad: Uint8Array;
  /** Dropout key of each segment: the same group draws the same mask in whatever pack it stands, [segments]. */
  keys: Uint32Array;
  /** Rows (token positions in `tokens`) that are read out, ascending, [readouts]. */
  rows: Int32Array;
  /** Token whose log-probability is read at each row; ignored when a reward is read, [readouts]. */
  targets: Int32Array;
}

/** One adapted linear: y += scale · B · core · (A x). Factor indices into the bank's table; core -1: none. */
export interface NativeAdapterModule {
  layer: number;
  /** 0 q, 1 k, 2 v, 3 o, 4 gate, 5 up, 6 down. */
  target: number;
  a: number;
  b: number;
  core: number;
  scale: number;
  dropout: number;
}

export interface NativeBankLayout {
  /** Offset, rows and columns of each factor in the flat buffer, [factors × 3]. */
  factors: Int32Array;
  /** For each adapter its modules. */
  adapters: NativeAdapterModule[][];
  /** For each adapter the factor that holds its reward head [1, hidden], or -1. */
  rewardHeads: Int32Array;
  /** Base weights that are trained: Hugging Face tensor name → factor index (full training). */
  weights: Record<string, number>;
}

/** Flat parameters that training changes. The buffers belong to JavaScript; native code reads and writes them in place. */
export interface NativeBank {
  readonly kind: 'bank';
}

export interface ScoreOptions {
  /** `logps`: log-probability of `targets` at `rows`. `reward`: the reward head at `rows`. */
  read: 'logps' | 'reward';
  /** Keep what `backward` needs of the segments with `needsGrad`. */
  keep: boolean;
  /** Keep only each layer's input and compute the rest again in `backward`. */
  checkpoint: boolean;
  /** Seed of the dropout masks; 0: dropout off. */
  dropoutSeed: number;
  /** Divides the logits of log-probabilities; 1 where absent. */
  temperature?: number;
  abort?: Int32Array;
}

export interface GenerateOptions {
  adapter: number;
  maxNewTokens: number;
  /** 0: greedy. */
  temperature: number;
  topK: number;
  topP: number;
  /** One seed for each prompt. */
  seeds: Uint32Array;
  /** Ids that end a sequence; the id itself is part of the result. */
  stopTokens: Int32Array;
  abort?: Int32Array;
}

export interface NativeModel {
  readonly kind: 'model';
  /** True where threads take shares of packs (see `Model.sharesPacks`). */
  readonly sharesPacks: boolean;
  /**
   * Scores into `out`, [readouts]; the caller checks that they are finite. `squares`, where given: Σ_v p_v² at each row,
   * [readouts] (WPO's weight).
   */
  score(
    pack: NativePack,
    bank: NativeBank | null,
    options: ScoreOptions,
    out: Float32Array,
    squares?: Float32Array,
  ): Promise<void>;
  /** Adds to the bank's gradients, given d loss / d score, [readouts]; consumes what the last `score` with `keep` left. */
  backward(bank: NativeBank, gradient: Float32Array, abort?: Int32Array): Promise<void>;
  /** Final hidden rows (after the last norm) at `pack.rows`, [readouts × hiddenSize]. */
  hidden(pack: NativePack, bank: NativeBank | null, out: Float32Array, abort?: Int32Array): Promise<void>;
  /** New tokens of each prompt. */
  generate(prompts: Int32Array[], bank: NativeBank | null, options: GenerateOptions): Promise<Int32Array[]>;
  /** Bytes held outside the JavaScript heap: packed weights, kept activations, and all that is held on a GPU. */
  memory(): { weights: number; activations: number; device: number };
  /** Names and shapes of the base weights that are there. */
  weightShapes(): { name: string; rows: number; cols: number }[];
  dispose(): void;
}

/** A run of parameters with its own step count, so that a user's optimizer state advances only with the user. */
export interface AdamWOptions {
  /** [start, end) of each span, [spans × 2]. */
  spans: Int32Array;
  /** Step count of each span, already advanced (1 on its first step), [spans]. */
  steps: Int32Array;
  /** 1 where weight decay applies, [spans]. */
  decay: Uint8Array;
  learningRate: number;
  beta1: number;
  beta2: number;
  eps: number;
  weightDecay: number;
  /** Gradients are multiplied by this first (clipping). */
  gradScale: number;
}

/**
 * Banks that stay on the device of a model, not the CPU, while steps are taken: between `takeOver` and `sendHome` passes
 * read and write the device's factors and gradients, and the bank's own arrays are left behind.
 */
export interface NativeDeviceBanks {
  /** Takes parameters and AdamW's moments (null: zeros) to the device; gradients start at zero. */
  takeOver(model: NativeModel, bank: NativeBank, m: Float32Array | null, v: Float32Array | null): Promise<void>;
  /** Fetches parameters, into the bank's array, and moments. */
  sendHome(model: NativeModel, bank: NativeBank, m: Float32Array, v: Float32Array): Promise<void>;
  /** Zeroes the gradients of [start, end) spans; null: all. */
  clear(model: NativeModel, bank: NativeBank, spans: Int32Array | null): Promise<void>;
  /**
   * Euclidean norms of the spans' gradients before clipping to `maxGradNorm` (null: off) over all; one step of AdamW where all
   * are finite, none otherwise.
   */
  step(
    model: NativeModel,
    bank: NativeBank,
    step: Omit<AdamWOptions, 'gradScale'> & { maxGradNorm: number | null },
  ): Promise<Float64Array>;
}

export interface SafetensorsInfo {
  metadata: Record<string, string>;
  /** In the file's order. dtype as in the file: F32, BF16, F16, I64 … */
  tensors: { name: string; dtype: string; shape: number[] }[];
}

export interface Addon extends NativeMerge, NativeGenerations {
  /** The class of every error that native code throws or rejects with from now on, made as `new type(code, message)`. */
  useErrorClass(type: new (code: string, message: string) => Error): void;
  cpu(): { isa: string; supported: string[]; unsupported: { name: string; why: string }[]; features: string[] };

  /** JSON of what a device library finds. It may end the process where a driver is damaged; see `device.ts`. */
  describeDevices(library: string): string;
  /** Opens a device and throws why it cannot be had. */
  tryDevice(library: string, ordinal: number): void;

  /** Opens, validates and (for float32: once) packs the weights. `files`: safetensors paths. Rejects with typed codes. */
  loadModel(config: NativeModelConfig, files: string[], options: NativeRuntime): Promise<NativeModel>;
  /** A model without files: every weight comes from a bank's `weights` (pretraining from nothing). */
  emptyModel(config: NativeModelConfig, options: NativeRuntime): NativeModel;
  /** Names and shapes [rows, cols] of the base weights a model of this configuration has. */
  weightShapes(config: NativeModelConfig): { name: string; rows: number; cols: number }[];
  createBank(layout: NativeBankLayout, parameters: Float32Array, gradients: Float32Array): NativeBank;

  adamw(
    parameters: Float32Array,
    gradients: Float32Array,
    m: Float32Array,
    v: Float32Array,
    options: AdamWOptions,
  ): Promise<void>;
  readonly deviceBanks: NativeDeviceBanks;
  /** Euclidean norm of each [start, end) span, float64 accumulation. */
  norms(values: Float32Array, spans: Int32Array): Float64Array;

  /** Header of a safetensors file, fully validated against the file's size. */
  safetensorsInfo(path: string): SafetensorsInfo;
  /** One tensor as float32 (F32, BF16, F16 and F64 are converted). */
  safetensorsTensor(path: string, name: string): Float32Array;
  /** All tensors as float32, in the order of their data; UNSUPPORTED where one is of another type. */
  safetensorsRead(path: string): {
    metadata: Record<string, string>;
    tensors: { name: string; dtype: string; shape: number[]; data: Float32Array }[];
  };

  /** Low-rank rewards over votes (lib/features). */
  readonly bilinear: NativeBilinear;
  /** Operators on typed arrays (lib/kernels). */
  readonly kernels: NativeKernels;
  /** Timings of operators (lib/api/bench.ts). */
  readonly bench: NativeBench;
}
