import { availableParallelism } from 'node:os';
import type { Bank } from '../adapters/bank.js';
import { type Forest, toCompletions, toReadouts } from '../data/pack.js';
import type { Sampling } from '../generation/request.js';
import type { DType, NativeModel, NativeModelConfig } from '../native/addon.js';
import { chooseDevice, chooseDeviceNow, type DeviceName, deviceName } from '../native/device.js';
import { PluralignError } from '../native/errors.js';
import { addon } from '../native/loader.js';
import { type ModelConfig, nativeConfig, readModelConfig, weightFiles } from './config.js';
import { type DownloadProgress, resolveModel } from './hub.js';
import { safetensorsInfo } from './safetensors.js';
import { loadTokenizer, type Tokenizer } from './tokenizer.js';

export interface LoadOptions {
  /** `auto`: the weights' own (float16 runs as bfloat16). */
  dtype?: 'auto' | 'bf16' | 'float32';
  device?: DeviceName;
  threads?: 'auto' | number;
  /** Called while a `hf:` model downloads. */
  onProgress?: (progress: DownloadProgress) => void;
}

export interface ScoreOptions {
  /** Keep activations of the policies with `grad` for one `backward`. */
  keep?: boolean;
  /** Keep only each layer's input, and compute the rest again in `backward`. */
  checkpoint?: boolean;
  /** Seed of dropout; 0 (default): off. */
  dropoutSeed?: number;
  /** Also give Σ_v π(v)² at every token (WPO's weights need it). */
  squares?: boolean;
  /** Log-probabilities of the policy as it is sampled: logits divided by this (default 1), forward and backward. */
  temperature?: number;
  abort?: Int32Array;
}

export interface GenerateOptions extends Sampling {
  maxNewTokens?: number;
  /** Prompt i is answered with seed + i. */
  seed?: number;
  /** Adapter index in the bank; -1 (default): the base. */
  adapter?: number;
  abort?: Int32Array;
}

/** Threads that `auto` means. */
export function threadCount(threads: 'auto' | number = 'auto'): number {
  return threads === 'auto' ? availableParallelism() : threads;
}

/** A decoder on one device: scores packs, goes backward through them, generates. Calls run one after another, off the main thread. */
export class Model implements Disposable {
  #fileOf: Map<string, string> | undefined;
  /** True where the weights stay in a cache: threads take shares of a pack each, so that its size costs memory and no time. */
  readonly sharesPacks: boolean;

  private constructor(
    /** Folder it was read from; null for a model made from nothing. */
    readonly dir: string | null,
    readonly config: ModelConfig,
    readonly shape: NativeModelConfig,
    readonly tokenizer: Tokenizer,
    readonly dtype: DType,
    readonly native: NativeModel,
    /** `cpu` or `cuda:N`. */
    readonly device: string,
  ) {
    this.sharesPacks = native.sharesPacks;
  }

  /**
   * Loads a Hugging Face folder (or `hf:owner/name`). Throws `NOT_FOUND`, `BAD_FILE` (also for a NaN),
   * `BAD_SHAPE`, `UNSUPPORTED` naming file and tensor or key.
   */
  static async load(spec: string, options: LoadOptions = {}): Promise<Model> {
    const device = await chooseDevice(options.device);
    const dir = await resolveModel(spec, { onProgress: options.onProgress });
    const config = readModelConfig(dir);
    const files = weightFiles(dir);
    const tokenizer = await loadTokenizer(dir);
    if (tokenizer.vocabSize > config.vocabSize)
      throw new PluralignError(
        'BAD_FILE',
        `${dir}: the tokenizer has ${tokenizer.vocabSize} ids, the embedding ${config.vocabSize} rows: they are not of one model`,
      );
    const dtype = Model.dtypeOf(options.dtype ?? 'auto', config, files);
    const shape = nativeConfig(config);
    const native = await addon().loadModel(shape, files, { dtype, threads: threadCount(options.threads), ...device });
    return new Model(dir, config, shape, tokenizer, dtype, native, deviceName(device));
  }

  /** A model whose weights all live in a bank (`Bank.full`). */
  static empty(config: ModelConfig, tokenizer: Tokenizer, options: LoadOptions = {}): Model {
    const device = chooseDeviceNow(options.device);
    const dtype = options.dtype === 'bf16' ? 'bfloat16' : 'float32';
    const shape = nativeConfig(config);
    const native = addon().emptyModel(shape, { dtype, threads: threadCount(options.threads), ...device });
    return new Model(null, config, shape, tokenizer, dtype, native, deviceName(device));
  }

  static dtypeOf(wanted: 'auto' | 'bf16' | 'float32', config: ModelConfig, files: readonly string[]): DType {
    if (wanted !== 'auto') return wanted === 'bf16' ? 'bfloat16' : 'float32';
    const stored = config.dtype ?? (safetensorsInfo(files[0]).tensors[0]?.dtype === 'F32' ? 'float32' : 'bfloat16');
    return stored === 'float32' ? 'float32' : 'bfloat16';
  }

  /** Names and shapes of the base weights that are there. */
  weightShapes(): { name: string; rows: number; cols: number }[] {
    return this.native.weightShapes();
  }

  /** A base weight as float32. */
  weight(name: string): Float32Array {
    if (this.dir === null) throw new PluralignError('NOT_FOUND', `a model made from nothing has no weight ${name}`);
    // The first file that holds a name, headers read once.
    this.#fileOf ??= new Map(
      weightFiles(this.dir)
        .reverse()
        .flatMap((file) => safetensorsInfo(file).tensors.map((t) => [t.name, file] as const)),
    );
    const names = this.config.tied && name === 'model.embed_tokens.weight' ? [name, 'lm_head.weight'] : [name];
    const found = names.find((n) => this.#fileOf!.has(n));
    if (found) return addon().safetensorsTensor(this.#fileOf.get(found)!, found);
    throw new PluralignError('NOT_FOUND', `${this.dir}: no tensor ${name}`);
  }

  /** The reward head [1, hidden] of a sequence classifier's folder, or null. */
  rewardHead(): Float32Array | null {
    if (this.dir === null || this.config.head !== 'reward') return null;
    for (const file of weightFiles(this.dir)) {
      if (safetensorsInfo(file).tensors.some((t) => t.name === 'score.weight'))
        return addon().safetensorsTensor(file, 'score.weight');
    }
    return null;
  }

  /**
   * Scores a pack. `logps`: log-probability of every completion token, natural, float32; `reward`: one value for each
   * completion. Values stand by completion (`pack.offsets`).
   */
  async score(
    pack: Forest,
    bank: Bank | null,
    read: 'logps' | 'reward',
    options: ScoreOptions = {},
  ): Promise<{ values: Float32Array; squares?: Float32Array }> {
    const out = new Float32Array(pack.native.rows.length);
    const squares = options.squares ? new Float32Array(out.length) : undefined;
    await this.native.score(
      pack.native,
      bank?.native() ?? null,
      {
        read,
        keep: options.keep ?? false,
        checkpoint: options.checkpoint ?? false,
        dropoutSeed: options.dropoutSeed ?? 0,
        temperature: options.temperature,
        abort: options.abort,
      },
      out,
      squares,
    );
    return { values: toCompletions(pack, out), squares: squares && toCompletions(pack, squares) };
  }

  /** Adds to the bank's gradients, given d loss / d value by completion. Once after each `score` with `keep`. */
  async backward(pack: Forest, bank: Bank, gradient: Float32Array, abort?: Int32Array): Promise<void> {
    await this.native.backward(bank.native(), toReadouts(pack, gradient), abort);
  }

  /** New tokens of each prompt (token ids with BOS), until EOS or `maxNewTokens` (default 64). The EOS is part of the result. */
  async generate(prompts: Int32Array[], bank: Bank | null, options: GenerateOptions = {}): Promise<Int32Array[]> {
    const { adapter = -1, seed = 0, abort, ...rest } = options;
    const { generate } = await import('../generation/engine.js');
    const requests = prompts.map((prompt, i) => ({ ...rest, prompt, policy: adapter, seed: seed + i }));
    return (await generate(this, bank, requests, { abort, text: 'none' })).map(({ tokens }) => tokens);
  }

  dispose(): void {
    this.native.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
