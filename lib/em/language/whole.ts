import type { ResolvedEm } from '../../config/schema.js';
import { type Progress, type ProgressInfo, type ProgressOptions, progress } from '../../training/progress.js';

/** How large a fit is. */
export interface FitSize {
  types: number;
  rows: number;
}

/** Forward passes of a row that its M-step takes as long as: frozen weights need no gradient of their own. */
export const improving = 2;

/** What a fit costs, in forward passes of a row under one type. */
export function workOf({ types, rows }: FitSize, em: Pick<ResolvedEm, 'rounds' | 'm_epochs' | 'folds' | 'e_step'>) {
  const { rounds, m_epochs, folds, e_step } = em;
  const improved = rounds * m_epochs * rows * (folds > 1 ? 1 - 1 / folds : 1);
  const judged = rows + (e_step === 'exact' ? ((rounds - 1) * rows) / folds : 0);
  return types * (improving * improved + judged);
}

/** One bar for a run's every fit, both steps of every round counted by what they cost. */
export class WholeRun {
  readonly #em: ResolvedEm;
  readonly #bar: Progress;
  readonly #fits: number;
  readonly #all: { rounds: number; work: number };
  /** Work of the fits that are done, and done of the one under way. */
  #before = 0;
  #here = 0;
  #tokens = 0;
  #planned = 0;
  #rounds = 0;
  #round = 0;
  #info: ProgressInfo = {};

  /** `fits`: all that the run will make, as far as is known. */
  constructor(label: string, fits: readonly FitSize[], em: ResolvedEm, options: ProgressOptions = {}) {
    this.#em = em;
    this.#fits = fits.length;
    const rounds = fits.length * em.rounds;
    const work = fits.reduce((sum, fit) => sum + workOf(fit, em), 0);
    this.#all = { rounds, work };
    const at = () => `round ${Math.min(rounds, this.#rounds + this.#round)}/${rounds}`;
    this.#bar = progress(work, label, { ...options, at });
  }

  /** The next fit; a share of it was done before this process began. */
  begin(name: string, fit: FitSize, done: { round: number; share: number }): void {
    this.#planned = workOf(fit, this.#em);
    this.#info = this.#fits > 1 ? { fit: name } : {};
    this.#here = done.share * this.#planned;
    this.#bar.skip(this.#here);
    this.#round = Math.min(this.#em.rounds, done.round + 1);
  }

  /** More of the fit that is under way, in `workOf`'s unit. */
  advance(work: number, { round, tokens = 0, ...info }: ProgressInfo & { round: number; tokens?: number }): void {
    this.#round = round;
    this.#tokens += tokens;
    // A fit can cost more than was planned, where folds are unequal: never more than its part.
    this.#here = Math.min(this.#planned, this.#here + work);
    Object.assign(this.#info, info, { tokens: this.#tokens });
    this.#bar.update(this.#before + this.#here, this.#info);
  }

  /** The fit under way is done. */
  end(): void {
    this.#before += this.#planned;
    this.#rounds += this.#em.rounds;
    this.#here = 0;
    this.#round = 0;
    this.#bar.update(this.#before, this.#info);
  }

  /** Nothing more is to be fitted, though more may have been planned. */
  complete(): void {
    this.#rounds = this.#all.rounds;
    this.#bar.update(this.#all.work, this.#info);
    this.stop();
  }

  stop(): void {
    this.#bar.stop();
  }
}
