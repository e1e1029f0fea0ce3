import type { ResolvedEm, ResolvedTrain } from '../../config/schema.js';
import { orderOf } from '../../training/order.js';
import { learningRateFactor } from '../../training/schedule.js';
import type { Annotators } from './annotators.js';

/** Which rows a round's steps look at, in which order, at which learning rate; all follows from round and batch. */
export class Rounds {
  readonly #rows: Int32Array[] = [];
  readonly #fold: Int32Array;

  constructor(
    annotators: Annotators,
    private readonly em: Pick<ResolvedEm, 'folds' | 'm_epochs' | 'rounds' | 'restart'>,
    private readonly train: ResolvedTrain,
  ) {
    // An annotator's rows go to the folds in turn, from another fold for the next annotator: many have one row.
    const next = Int32Array.from(annotators.names, (_, u) => u % em.folds);
    this.#fold = Int32Array.from(annotators.of, (u) => next[u]++ % em.folds);
    const all = Int32Array.from(annotators.of, (_, row) => row);
    for (let fold = 0; fold < em.folds; fold++)
      this.#rows.push(em.folds === 1 ? all : all.filter((row) => this.#fold[row] !== fold));
  }

  /** The fold of a row; the E-step of round t looks at fold t mod `em.folds`. */
  foldOf(row: number): number {
    return this.#fold[row];
  }

  /** The M-step's rows: all, or those that the round's E-step does not look at. */
  #rowsOf(round: number): Int32Array {
    return this.#rows[round % this.em.folds];
  }

  batchesInEpoch(round: number): number {
    return Math.ceil(this.#rowsOf(round).length / this.train.batch_size);
  }

  /** Batches of a round's M-step. */
  batches(round: number): number {
    return this.batchesInEpoch(round) * this.em.m_epochs;
  }

  /** Rows of a batch. */
  batch(round: number, batch: number): Int32Array {
    const { batch_size: size, seed, shuffle } = this.train;
    const rows = this.#rowsOf(round);
    const each = this.batchesInEpoch(round);
    const epoch = round * this.em.m_epochs + Math.floor(batch / each);
    const order = orderOf(rows.length, epoch, seed, shuffle);
    const first = (batch % each) * size;
    return Int32Array.from(order.subarray(first, first + size), (i) => rows[i]);
  }

  get steps(): number {
    let steps = 0;
    for (let round = 0; round < this.em.rounds; round++) steps += this.batches(round);
    return steps;
  }

  /** Of the step after `step` steps. With `em.restart` the schedule starts anew in every round. */
  learningRate(step: number): number {
    const { learning_rate, schedule: kind, warmup, min_learning_rate_ratio: minRatio } = this.train;
    let [at, of] = [step, this.steps];
    if (this.em.restart) {
      let round = 0;
      while (round + 1 < this.em.rounds && at >= this.batches(round)) at -= this.batches(round++);
      of = this.batches(round);
    }
    return learning_rate * learningRateFactor(at, of, { kind, warmup, minRatio });
  }
}
