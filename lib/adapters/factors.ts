import { createHash } from 'node:crypto';
import { Random } from '../base/random.js';
import type { NativeAdapterModule, NativeModelConfig } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import type { AdapterConfig, Target } from './config.js';

/** A: down-projection [r, in]; B: up-projection [out, r]; core: [r, r], or a vector [1, r]; head: [1, hidden]; weight: a base weight. */
export type Role = 'A' | 'B' | 'core' | 'head' | 'weight';

/** One tensor of the flat buffer. */
export interface Factor {
  /** PEFT's name without its prefix and suffix, with `@adapter` behind it where the factor belongs to one adapter alone. */
  readonly name: string;
  readonly role: Role;
  /** First element in the flat buffer. */
  readonly offset: number;
  readonly rows: number;
  readonly cols: number;
  /** Index of the only adapter that uses it; -1: shared, or a base weight. */
  readonly owner: number;
  /** False: the optimizer leaves it and its gradient alone. */
  trainable: boolean;
  /** Whether weight decay applies. */
  readonly decay: boolean;
}

export interface BankAdapter {
  readonly name: string;
  /** Null where the bank holds base weights. */
  readonly config: AdapterConfig | null;
  readonly targets: readonly Target[];
  /** Factor indices of each target, in the order of `targets`. */
  readonly modules: readonly NativeAdapterModule[];
  /** Factor index of the reward head, or -1. */
  readonly head: number;
}

/** Offsets reach the addon as 32-bit integers. */
const maximumElements = 2 ** 31 - 1;

/** Lays factors and adapters out over one flat buffer. */
export class Layout {
  readonly factors: Factor[] = [];
  readonly adapters: BankAdapter[] = [];
  elements = 0;
  readonly #index = new Map<string, number>();
  readonly #names = new Set<string>();

  /** Index of the factor of that name, made where it is not there yet. */
  factor(name: string, role: Role, rows: number, cols: number, owner: number, decay = true): number {
    const full = owner === -1 ? name : `${name}@${this.#adapterName(owner)}`;
    const known = this.#index.get(full);
    if (known !== undefined) return known;
    if (this.elements + rows * cols > maximumElements) {
      throw new PluralignError(
        'OUT_OF_MEMORY',
        `${full} [${rows}, ${cols}] takes the trained parameters over ${maximumElements}, the most that one bank holds; ` +
          'use a smaller rank, fewer targets or fewer adapters',
      );
    }
    const index = this.factors.length;
    this.factors.push({ name: full, role, offset: this.elements, rows, cols, owner, trainable: true, decay });
    this.elements += rows * cols;
    this.#index.set(full, index);
    return index;
  }

  /** Adds an adapter whose factors are its own or shared as its configuration says. */
  adapter(
    name: string,
    config: AdapterConfig,
    targets: readonly Target[],
    model: NativeModelConfig,
    head: 'none' | 'own' | 'shared',
  ): void {
    const own = this.#reserve(name);
    const { share } = config;
    const modules = targets.map((target): NativeAdapterModule => {
      const { r } = target;
      const a = this.factor(`${target.name}.lora_A`, 'A', r, target.in, share === 'none' || share === 'b' ? own : -1);
      const b = this.factor(`${target.name}.lora_B`, 'B', target.out, r, share === 'none' || share === 'a' ? own : -1);
      const core =
        share === 'core' || share === 'vector'
          ? this.factor(`${target.name}.lora_core`, 'core', share === 'core' ? r : 1, r, own)
          : -1;
      return { layer: target.layer, target: target.target, a, b, core, scale: target.scale, dropout: config.dropout };
    });
    const headIndex =
      head === 'none' ? -1 : this.factor('score', 'head', 1, model.hiddenSize, head === 'own' ? own : -1);
    this.adapters[own] = { name, config, targets, modules, head: headIndex };
  }

  /** An adapter that changes nothing of its own: where base weights are trained, its segments read them. */
  plain(name: string, hiddenSize: number | undefined): void {
    const own = this.#reserve(name);
    const head = hiddenSize === undefined ? -1 : this.factor('score', 'head', 1, hiddenSize, -1);
    this.adapters[own] = { name, config: null, targets: [], modules: [], head };
  }

  #reserve(name: string): number {
    if (name === '' || this.#names.has(name)) {
      throw new PluralignError(
        'BAD_ARGUMENT',
        `adapter name ${JSON.stringify(name)} is ${name === '' ? 'empty' : 'given twice'}; each adapter needs a name of its own`,
      );
    }
    this.#names.add(name);
    this.adapters.push({ name, config: null, targets: [], modules: [], head: -1 });
    return this.adapters.length - 1;
  }

  #adapterName(owner: number): string {
    return this.adapters[owner].name;
  }
}

/**
 * A factor's first values, from the seed and the key alone, so that adding an adapter changes no other's.
 *
 * A: Kaiming-uniform with a = √5 over its fan-in, U[−1/√in, 1/√in), whatever the sharing (published code takes the bound
 * of other layouts and differs up to 64×); B: zero; core: identity, vector: ones, so that every adapter starts as the
 * shared product; head: N(0, 0.02²), transformers' initialisation of `score`.
 */
export function initialise(factor: Factor, values: Float32Array, seed: number, key: string): void {
  const hash = createHash('sha256').update(key).digest();
  const random = new Random(seed, hash.readUInt32LE(0), hash.readUInt32LE(4), hash.readUInt32LE(8));
  if (factor.role === 'A') {
    const bound = 1 / Math.sqrt(factor.cols);
    for (let i = 0; i < values.length; i++) values[i] = ((random.next() >>> 8) / 2 ** 23 - 1) * bound;
  } else if (factor.role === 'head') {
    for (let i = 0; i < values.length; i++) values[i] = 0.02 * random.normal();
  } else if (factor.role === 'core') {
    if (factor.rows === 1) values.fill(1);
    else for (let i = 0; i < factor.rows; i++) values[i * factor.cols + i] = 1;
  } else {
    values.fill(0);
  }
}

/** B [out, r] ← B · core [r, r], or B · diag(core) where the core has one row; in place, float64 sums. */
export function foldCore(up: Float32Array, out: number, r: number, core: Float32Array, coreRows: number): void {
  const row = new Float64Array(r);
  for (let o = 0; o < out; o++) {
    const line = up.subarray(o * r, (o + 1) * r);
    if (coreRows === 1) {
      for (let j = 0; j < r; j++) line[j] *= core[j];
      continue;
    }
    row.fill(0);
    for (let k = 0; k < r; k++) for (let j = 0; j < r; j++) row[j] += line[k] * core[k * r + j];
    line.set(row);
  }
}
