import type { AdamWOptions, NativeBank, NativeModel } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import { addon } from '../native/loader.js';

/** One step of AdamW over spans of the buffer; gradients are scaled down to `maxGradNorm` over all of them (null: off). */
export type SpansStep = Omit<AdamWOptions, 'gradScale'> & { maxGradNorm: number | null };

/** A flat buffer of values, their gradients and AdamW's moments: all here, or all on the device of a model. */
export class Moments {
  #m: Float32Array | null = null;
  #v: Float32Array | null = null;
  /** The model on whose device all is; null: it is here. */
  #away: NativeModel | null = null;
  readonly #values: Float32Array;
  readonly #gradients: Float32Array;
  readonly #native: () => NativeBank;

  constructor(values: Float32Array, gradients: Float32Array, native: () => NativeBank) {
    this.#values = values;
    this.#gradients = gradients;
    this.#native = native;
  }

  /** Gives what it is given. Throws `BAD_ARGUMENT` where it is on a device. */
  here<T>(what: T): T {
    if (this.#away)
      throw new PluralignError(
        'BAD_ARGUMENT',
        'this bank is on a device: wait for moveHome() before reading or writing it',
      );
    return what;
  }

  /** Null before the first step. */
  get m(): Float32Array | null {
    return this.here(this.#m);
  }
  get v(): Float32Array | null {
    return this.here(this.#v);
  }

  async moveTo(model: { native: NativeModel; device: string }): Promise<void> {
    if (model.device === 'cpu' || this.#away === model.native) return;
    await this.moveHome();
    await addon().deviceBanks.takeOver(model.native, this.#native(), this.#m, this.#v);
    this.#away = model.native;
  }

  async moveHome(): Promise<void> {
    if (!this.#away) return;
    const [m, v] = this.#held();
    await addon().deviceBanks.sendHome(this.#away, this.#native(), m, v);
    this.#away = null;
    this.#gradients.fill(0);
  }

  /** Zeroes gradients; null: all. */
  clear(spans: Int32Array | null): void {
    // In the order of the jobs; where it fails the device is lost, and the next job says so.
    if (this.#away)
      addon()
        .deviceBanks.clear(this.#away, this.#native(), spans)
        .catch(() => {});
    else if (spans === null) this.#gradients.fill(0);
    else for (let i = 0; i < spans.length; i += 2) this.#gradients.fill(0, spans[i], spans[i + 1]);
  }

  /** Euclidean norms of gradients, one for each span. */
  norms(spans: Int32Array): Float64Array {
    return addon().norms(this.here(this.#gradients), spans);
  }

  /** Norms before clipping; nothing changes where one is not finite. */
  async step(step: SpansStep): Promise<Float64Array> {
    if (this.#away) return addon().deviceBanks.step(this.#away, this.#native(), step);
    const { maxGradNorm, ...options } = step;
    const norms = this.norms(step.spans);
    if (!norms.every(Number.isFinite)) return norms;
    const gradScale = maxGradNorm === null ? 1 : Math.min(1, maxGradNorm / (total(norms) + 1e-6));
    const [m, v] = this.#held();
    await addon().adamw(this.#values, this.#gradients, m, v, { ...options, gradScale });
    return norms;
  }

  reset(): void {
    this.here(this.#m)?.fill(0);
    this.#v?.fill(0);
  }

  /** Copies. */
  restore(m: Float32Array | null, v: Float32Array | null): void {
    this.#m = this.here(m) && Float32Array.from(m!);
    this.#v = v && Float32Array.from(v);
  }

  dispose(): void {
    this.#away = null;
    this.#m = null;
    this.#v = null;
  }

  #held(): [Float32Array, Float32Array] {
    this.#m ??= allocate(this.#values.length);
    this.#v ??= allocate(this.#values.length);
    return [this.#m, this.#v];
  }
}

/** Throws `OUT_OF_MEMORY` saying for how much. */
export function allocate(elements: number): Float32Array {
  try {
    return new Float32Array(elements);
  } catch (error) {
    const gib = ((elements * 4) / 2 ** 30).toFixed(1);
    throw new PluralignError('OUT_OF_MEMORY', `cannot hold ${elements} trained parameters (${gib} GiB a copy)`, {
      cause: error,
    });
  }
}

export function total(norms: Float64Array): number {
  return Math.sqrt(norms.reduce((sum, norm) => sum + norm * norm, 0));
}
