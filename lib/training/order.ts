import { Random } from '../base/random.js';

/**
 * The order of `n` groups in one epoch, [n]: a Fisher–Yates shuffle that depends on (seed, epoch) only, or 0 … n − 1 where
 * `shuffle` is off. Epochs count from 0.
 */
export function orderOf(n: number, epoch: number, seed: number, shuffle: boolean): Uint32Array {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  return shuffle ? new Random(seed, epoch).shuffle(order) : order;
}

/** Steps in one epoch; the last batch of an epoch may be smaller, none is dropped. */
export function stepsPerEpoch(n: number, batchSize: number): number {
  return Math.ceil(n / batchSize);
}

/** Length of a run: `steps` where given, else that of `epochs` (fractions allowed, rounded up). */
export function totalSteps(
  n: number,
  batchSize: number,
  train: { epochs: number | null; steps: number | null },
): number {
  if (train.steps !== null) return train.steps;
  // Decimal shares are not exact in binary: 1.1 epochs of 10 steps are 11, not 12.
  return Math.ceil((train.epochs ?? 1) * stepsPerEpoch(n, batchSize) - 1e-9);
}

/** Data order of a run. A step's batch follows from the step alone, so a resumed run needs no state. */
export class DataOrder {
  readonly stepsPerEpoch: number;
  readonly #batchSize: number;
  readonly #seed: number;
  readonly #shuffle: boolean;
  readonly #n: number;
  #epoch = -1;
  #order: Uint32Array = new Uint32Array();

  constructor(n: number, options: { batchSize: number; seed: number; shuffle: boolean }) {
    this.#n = n;
    this.#batchSize = options.batchSize;
    this.#seed = options.seed;
    this.#shuffle = options.shuffle;
    this.stepsPerEpoch = stepsPerEpoch(n, options.batchSize);
  }

  /** Positions in the data set of the groups in a step's batch; steps count from 0. */
  batch(step: number): Uint32Array {
    const epoch = Math.floor(step / this.stepsPerEpoch);
    if (epoch !== this.#epoch) {
      this.#order = orderOf(this.#n, epoch, this.#seed, this.#shuffle);
      this.#epoch = epoch;
    }
    const start = (step - epoch * this.stepsPerEpoch) * this.#batchSize;
    return this.#order.subarray(start, Math.min(start + this.#batchSize, this.#n));
  }

  /** Epochs done once `steps` steps are, as a fraction (the `epoch` of metrics). */
  epochAt(steps: number): number {
    const whole = Math.floor(steps / this.stepsPerEpoch);
    return whole + ((steps - whole * this.stepsPerEpoch) * this.#batchSize) / this.#n;
  }
}
