import type { Tensor } from '../model/safetensors.js';
import type { NativeBank, NativeBankLayout, NativeModel, NativeModelConfig } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import { addon } from '../native/loader.js';
import { type BankState, checkState } from './bank-state.js';
import type { AdapterConfig } from './config.js';
import { targetsOf } from './config.js';
import type { BankAdapter, Factor } from './factors.js';
import { initialise, Layout } from './factors.js';
import { type AdapterMix, layMixes } from './mix.js';
import { allocate, Moments, total } from './moments.js';
import { loadPeft, type PeftAdapter } from './peft.js';
import { placesOf, plainLora } from './plain.js';

export interface StepOptions {
  learningRate: number;
  beta1: number;
  beta2: number;
  eps: number;
  weightDecay: number;
  /** Gradients are scaled down to this norm over all factors of the step; null: off. */
  maxGradNorm: number | null;
  /** Indices of the adapters that were in the batch; absent: all. Their own factors and every shared one advance. */
  active?: Iterable<number>;
}

export interface CreateOptions {
  seed: number;
  /** Adds a reward head `score` [1, hidden], each adapter's own without sharing, else one for all; default: as `modulesToSave` says. */
  rewardHead?: boolean;
  /** Gives every adapter the same first A (SI of the shared-LoRA paper's code). */
  sharedInit?: boolean;
}

/** The flat float32 parameters that training changes, and who uses which part of them. */
export class Bank {
  readonly factors: readonly Factor[];
  readonly adapters: readonly BankAdapter[];
  /** Steps that each factor has taken, [factors]. */
  readonly steps: Int32Array;
  /** True where it stands in for weights of the base (`full`), under whatever adapter: the base is then not in reach. */
  readonly replacesBase: boolean;
  /** True where an adapter has dropout. */
  readonly drops: boolean;
  readonly #parameters: Float32Array;
  readonly #gradients: Float32Array;
  readonly #moments: Moments;
  #native: NativeBank | null = null;
  #disposed = false;
  readonly #factorIndex: Map<string, number>;
  readonly #adapterIndex: Map<string, number>;
  readonly #shared: number[] = [];
  readonly #own: number[][];

  private constructor(layout: Layout) {
    this.factors = layout.factors;
    this.adapters = layout.adapters;
    this.steps = new Int32Array(layout.factors.length);
    this.replacesBase = layout.factors.some(({ role }) => role === 'weight');
    this.drops = layout.adapters.some(({ modules }) => modules.some(({ dropout }) => dropout > 0));
    this.#factorIndex = new Map(layout.factors.map((factor, i) => [factor.name, i]));
    this.#adapterIndex = new Map(layout.adapters.map((adapter, i) => [adapter.name, i]));
    this.#own = layout.adapters.map(() => []);
    layout.factors.forEach(({ owner }, i) => {
      (owner === -1 ? this.#shared : this.#own[owner]).push(i);
    });
    this.#parameters = allocate(layout.elements);
    this.#gradients = allocate(layout.elements);
    this.#moments = new Moments(this.#parameters, this.#gradients, () => this.native());
  }

  /**
   * A bank of new adapters of one configuration; `config.share` says which factors they share. Every adapter starts as
   * the base model (B is zero). Values depend on the seed and the tensor's name only.
   */
  static create(
    model: NativeModelConfig,
    config: AdapterConfig,
    names: readonly string[],
    options: CreateOptions,
  ): Bank {
    const targets = targetsOf(config, model);
    const layout = new Layout();
    const wantsHead = options.rewardHead ?? config.modulesToSave.length > 0;
    const head = wantsHead ? (config.share === 'none' ? 'own' : 'shared') : 'none';
    for (const name of names) layout.adapter(name, config, targets, model, head);
    const bank = new Bank(layout);
    bank.factors.forEach((factor, i) => {
      const key = options.sharedInit ? factor.name.split('@', 1)[0] : factor.name;
      initialise(factor, bank.values(i), options.seed, key);
    });
    return bank;
  }

  /**
   * A bank of PEFT folders, each adapter with factors of its own; ranks and targets may differ. Behind them stand `mixes`
   * of them. Throws what `loadPeft` throws.
   */
  static async fromPeft(
    model: NativeModelConfig,
    sources: readonly { name: string; dir: string; trainable?: boolean }[],
    mixes: readonly AdapterMix[] = [],
  ): Promise<Bank> {
    const layout = new Layout();
    const loaded: PeftAdapter[] = [];
    for (const { name, dir } of sources) {
      const peft = await loadPeft(dir, model);
      layout.adapter(name, peft.config, peft.targets, model, peft.tensors.has('score') ? 'own' : 'none');
      loaded.push(peft);
    }
    const fillMixes = layMixes(layout, loaded, mixes, model);
    const bank = new Bank(layout);
    fillMixes(bank);
    sources.forEach(({ name, trainable }, i) => {
      bank.setAdapter(name, loaded[i].tensors);
      if (trainable === false) bank.setTrainable((factor) => factor.owner !== i && factor.trainable);
    });
    return bank;
  }

  /**
   * A bank of base weights for full training, filled by `load`. Norms and biases (one row) take no weight decay. It has
   * one adapter, `default`, without factors of its own; with `rewardHead` that adapter carries a head.
   */
  static full(
    weights: readonly { name: string; rows: number; cols: number }[],
    load: (name: string) => Float32Array,
    options: { rewardHead?: { hiddenSize: number; seed: number } } = {},
  ): Bank {
    const layout = new Layout();
    for (const { name, rows, cols } of weights) {
      layout.factor(name, 'weight', rows, cols, -1, rows > 1 && !/(norm\.weight|\.bias)$/.test(name));
    }
    layout.plain('default', options.rewardHead?.hiddenSize);
    const bank = new Bank(layout);
    bank.factors.forEach((factor, i) => {
      if (factor.role !== 'weight') initialise(factor, bank.values(i), options.rewardHead!.seed, factor.name);
      else bank.#fill(i, load(factor.name), [factor.rows, factor.cols]);
    });
    return bank;
  }

  /** Values of all factors, in place. Throws `BAD_ARGUMENT` between `moveTo` and `moveHome`, as all that touches them does. */
  get parameters(): Float32Array {
    return this.#moments.here(this.#parameters);
  }

  /** Their gradients, in the same order, in place. */
  get gradients(): Float32Array {
    return this.#moments.here(this.#gradients);
  }

  /**
   * Keeps values, gradients and AdamW's moments on the device that a model runs on, so that passes and steps move nothing;
   * gradients start at zero. Does nothing on the CPU, or where they are there already.
   */
  async moveTo(model: { native: NativeModel; device: string }): Promise<void> {
    await this.#moments.moveTo(model);
  }

  /** Brings values and moments back, and gradients of zero; does nothing where they are here. */
  async moveHome(): Promise<void> {
    await this.#moments.moveHome();
  }

  /** Index of an adapter for packs. Throws `NOT_FOUND` naming those there are. */
  adapterIndex(name: string): number {
    const index = this.#adapterIndex.get(name);
    if (index !== undefined) return index;
    const some = [...this.#adapterIndex.keys()].slice(0, 10).join(', ');
    throw new PluralignError('NOT_FOUND', `no adapter ${JSON.stringify(name)} in this bank; it has ${some || 'none'}`);
  }

  /**
   * Factors that only this adapter uses, in the order of the buffer; the k-th of one adapter is the k-th of every other of
   * the same configuration.
   */
  own(adapter: number): readonly number[] {
    return this.#own[adapter];
  }

  /** Factors that belong to no single adapter. */
  get shared(): readonly number[] {
    return this.#shared;
  }

  /** Values of all that is an adapter's own, one factor after another. A copy. */
  ownValues(adapter: number): Float32Array {
    const factors = this.#own[adapter];
    const out = new Float32Array(factors.reduce((n, i) => n + this.values(i).length, 0));
    let at = 0;
    for (const i of factors) {
      out.set(this.values(i), at);
      at += this.values(i).length;
    }
    return out;
  }

  /** Gives one adapter the values of another's own factors; both must be of one configuration. */
  copyOwn(from: number, to: number): void {
    this.#own[to].forEach((factor, k) => {
      this.values(factor).set(this.values(this.#own[from][k]));
    });
  }

  /** Forgets AdamW's moments and step counts. */
  resetOptimizer(): void {
    this.#moments.reset();
    this.steps.fill(0);
  }

  /** Index of a factor. Throws `NOT_FOUND`. */
  factorIndex(name: string): number {
    const index = this.#factorIndex.get(name);
    if (index === undefined) throw new PluralignError('NOT_FOUND', `no factor ${JSON.stringify(name)} in this bank`);
    return index;
  }

  /** A factor's values, [rows × cols], in place. */
  values(factor: number): Float32Array {
    const { offset, rows, cols } = this.factors[factor];
    return this.parameters.subarray(offset, offset + rows * cols);
  }

  /** A factor's gradient, [rows × cols], in place. */
  gradient(factor: number): Float32Array {
    const { offset, rows, cols } = this.factors[factor];
    return this.gradients.subarray(offset, offset + rows * cols);
  }

  /** Says for every factor whether steps change it. */
  setTrainable(rule: (factor: Factor) => boolean): void {
    for (const factor of this.factors) factor.trainable = rule(factor);
  }

  layout(): NativeBankLayout {
    return {
      factors: Int32Array.from(this.factors.flatMap(({ offset, rows, cols }) => [offset, rows, cols])),
      adapters: this.adapters.map((adapter) => [...adapter.modules]),
      rewardHeads: Int32Array.from(this.adapters, (adapter) => adapter.head),
      weights: Object.fromEntries(
        this.factors.flatMap((factor, i) => (factor.role === 'weight' ? [[factor.name, i] as const] : [])),
      ),
    };
  }

  /** The addon's view of this bank, made on first use. Throws `DISPOSED`. */
  native(): NativeBank {
    if (this.#disposed) throw new PluralignError('DISPOSED', 'this bank was disposed of');
    this.#native ??= addon().createBank(this.layout(), this.#parameters, this.#gradients);
    return this.#native;
  }

  /** Clears all gradients, or those that a step with the same `active` reads. */
  zeroGrad(active?: Iterable<number>): void {
    this.#moments.clear(active === undefined ? null : this.#spans(this.#taking(active)));
  }

  /** Euclidean norm over the gradients of the factors that a step with the same `active` changes. */
  gradNorm(active?: Iterable<number>): number {
    return total(this.#norms(this.#taking(active)));
  }

  /** Euclidean norm of each trainable factor's gradient. */
  gradNormsByTensor(): Map<string, number> {
    const taking = this.#taking();
    const norms = this.#norms(taking);
    return new Map(taking.map((factor, i) => [this.factors[factor].name, norms[i]]));
  }

  /**
   * One AdamW step over the factors of the adapters that were in the batch and over every shared one; each factor counts
   * its own steps. Gives the gradient norm before clipping (to `maxGradNorm` / (norm + 1e-6), as PyTorch does).
   * Throws `NON_FINITE` naming the first factor whose gradient is not finite, with nothing changed.
   */
  async step(options: StepOptions): Promise<number> {
    if (this.#disposed) throw new PluralignError('DISPOSED', 'this bank was disposed of');
    const taking = this.#taking(options.active);
    const { learningRate, beta1, beta2, eps, weightDecay, maxGradNorm } = options;
    const norms = await this.#moments.step({
      spans: this.#spans(taking),
      steps: Int32Array.from(taking, (i) => this.steps[i] + 1),
      decay: Uint8Array.from(taking, (i) => (this.factors[i].decay ? 1 : 0)),
      ...{ learningRate, beta1, beta2, eps, weightDecay, maxGradNorm },
    });
    const bad = norms.findIndex((norm) => !Number.isFinite(norm));
    if (bad !== -1) {
      const { name } = this.factors[taking[bad]];
      throw new PluralignError(
        'NON_FINITE',
        `the gradient of ${name} is ${norms[bad]}; no step was taken. Lower the learning rate`,
      );
    }
    for (const i of taking) this.steps[i]++;
    return total(norms);
  }

  /** Everything that a checkpoint has to keep. */
  state(): BankState {
    const factors = this.factors.map(({ name, rows, cols }) => ({ name, rows, cols }));
    return { parameters: this.parameters, m: this.#moments.m, v: this.#moments.v, steps: this.steps, factors };
  }

  /** Takes a state of a bank with the same factors in the same order. Throws `BAD_SHAPE`, with nothing changed. */
  restore(state: BankState): void {
    checkState(state, this.factors, this.parameters.length);
    this.parameters.set(state.parameters);
    this.#moments.restore(state.m, state.v);
    this.steps.set(state.steps);
  }

  /**
   * Sets an adapter from A and B (and `score`) by name, as `PeftAdapter.tensors` and `materialise` give them. Where a
   * factor is shared, all its adapters change; cores and vectors stay as they are.
   * Throws `BAD_SHAPE` naming the tensor, with nothing changed.
   */
  setAdapter(name: string, tensors: ReadonlyMap<string, Tensor>): void {
    const places = placesOf(this.adapters[this.adapterIndex(name)], this.factors, tensors);
    for (const [key, factor] of places) this.#fill(factor, tensors.get(key)!.data, tensors.get(key)!.shape);
  }

  /**
   * An adapter as plain LoRA: `model.layers.0.self_attn.q_proj.lora_A` [r, in], `….lora_B` [out, r], and `score`
   * [1, hidden] where it has a head. A core or vector is multiplied into B (float64 sums). Copies.
   */
  materialise(name: string): Map<string, Tensor> {
    return plainLora(this.adapters[this.adapterIndex(name)], this.factors, (factor) => this.values(factor));
  }

  /** Lets go of the optimizer's state and of the addon's view; further steps and `native()` throw `DISPOSED`. */
  dispose(): void {
    this.#disposed = true;
    this.#native = null;
    this.#moments.dispose();
  }

  #fill(factor: number, data: Float32Array, shape: number[]): void {
    const values = this.values(factor);
    if (data.length !== values.length) {
      const { name, rows, cols } = this.factors[factor];
      throw new PluralignError(
        'BAD_SHAPE',
        `${name}: found ${data.length} values for [${shape.join(', ')}], expected [${rows}, ${cols}]`,
      );
    }
    values.set(data);
  }

  /** Factors that a step changes, in the order of the buffer. */
  #taking(active?: Iterable<number>): number[] {
    const all =
      active === undefined
        ? [...this.factors.keys()]
        : [...this.#shared, ...[...new Set(active)].flatMap((u) => this.#own[u])].sort((a, b) => a - b);
    return all.filter((i) => this.factors[i].trainable);
  }

  #spans(taking: readonly number[]): Int32Array {
    const spans = new Int32Array(2 * taking.length);
    taking.forEach((factor, i) => {
      const { offset, rows, cols } = this.factors[factor];
      spans[2 * i] = offset;
      spans[2 * i + 1] = offset + rows * cols;
    });
    return spans;
  }

  #norms(taking: readonly number[]): Float64Array {
    return this.#moments.norms(this.#spans(taking));
  }
}
