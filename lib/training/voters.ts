import type { Bank } from '../adapters/bank.js';
import { Random } from '../base/random.js';
import type { ResolvedAdapter } from '../config/index.js';
import type { Group } from '../data/types.js';
import { PluralignError } from '../native/errors.js';

/** Everyone named in some rows, in the order of their names. */
export function annotatorsOf(groups: readonly Group[]): string[] {
  return [...new Set(groups.flatMap(({ annotator }) => (annotator === undefined ? [] : [annotator])))].sort();
}

/** Weights under which every annotator counts alike: an annotator's rows weigh as much as the mean annotator's do. */
export function balanced(groups: readonly Group[]): Group[] {
  const sums = weightsOf(groups);
  const mean = [...sums.values()].reduce((a, b) => a + b, 0) / Math.max(1, sums.size);
  return groups.map((g) => {
    const sum = g.annotator === undefined ? 0 : sums.get(g.annotator)!;
    return sum > 0 ? { ...g, weight: (g.weight * mean) / sum } : g;
  });
}

function weightsOf(groups: readonly Group[]): Map<string, number> {
  const sums = new Map<string, number>();
  for (const { annotator, weight } of groups)
    if (annotator !== undefined) sums.set(annotator, (sums.get(annotator) ?? 0) + weight);
  return sums;
}

/** Tells the draws of the generic adapter from other uses of the seed. */
const stream = 0x6e61;

/**
 * Who is trained when, where every annotator has an adapter (P-ShareLoRA, Liu et al. 2025).
 *
 * The bank's first adapter is the generic one; it shares what all share. For the first `globalSteps` steps every row
 * trains it (the paper's global adapter); then everyone starts from a copy of it. From there on a row trains its annotator's
 * adapter, or, with probability `generic`, the generic one: in expectation the mixed objective of P-DPO (Li et al. 2024),
 * (1 − q) l(annotator) + q l(generic). So the generic adapter keeps up with the shared factors and has seen a q-th of
 * everyone's rows. Rows without a name always train it.
 */
export class Voters {
  /** Adapter of each annotator of the training rows. */
  readonly index: ReadonlyMap<string, number>;
  readonly globalSteps: number;
  readonly #votes: Map<string, number>;

  constructor(
    readonly bank: Bank,
    readonly annotators: readonly string[],
    readonly options: Pick<ResolvedAdapter, 'generic' | 'penalty' | 'init' | 'init_share'> & { seed: number },
    groups: readonly Group[],
    steps: number,
  ) {
    this.index = new Map(annotators.map((name, i) => [name, i + 1]));
    this.#votes = weightsOf(groups);
    const { init, init_share } = options;
    this.globalSteps = init === 'shared' ? 0 : Math.min(steps - 1, Math.round((init_share ?? 0) * steps));
    this.#copy();
  }

  /** Of a name; the generic one where the name is unknown. */
  adapterOf(annotator: string | undefined): number {
    return annotator === undefined ? 0 : (this.index.get(annotator) ?? 0);
  }

  /** The adapter that judges a row once `steps` steps are done. */
  judging(steps: number): (group: Group) => number {
    // Copies are made when the next step begins; until then everyone is the generic adapter.
    return steps <= this.globalSteps ? () => 0 : ({ annotator }) => this.adapterOf(annotator);
  }

  /** The adapter that a row trains in the step after `steps`. */
  training(steps: number): (group: Group) => number {
    const { seed, generic } = this.options;
    if (steps < this.globalSteps) return () => 0;
    return ({ annotator, index }) => {
      const own = this.adapterOf(annotator);
      return generic > 0 && own > 0 && new Random(seed, stream, steps, index).uniform() < generic ? 0 : own;
    };
  }

  /** What comes before the step after `steps`: where the global phase ends, everyone gets a copy. Twice is as once. */
  begin(steps: number): void {
    if (this.globalSteps === 0 || steps !== this.globalSteps) return;
    this.#copy();
    if (this.restarts) this.bank.resetOptimizer();
  }

  /** After parameters of an earlier step were put back. */
  settle(steps: number): void {
    if (steps <= this.globalSteps) this.#copy();
  }

  /** The global phase is a run of its own. */
  get restarts(): boolean {
    return this.options.init === 'global' && this.globalSteps > 0;
  }

  /** Steps done and steps in all of the schedule that the step after `steps` belongs to. */
  schedule(steps: number, total: number): [number, number] {
    if (!this.restarts) return [steps, total];
    const at = this.globalSteps;
    return steps < at ? [steps, at] : [steps - at, total - at];
  }

  #copy(): void {
    for (let u = 1; u <= this.annotators.length; u++) this.bank.copyOwn(0, u);
  }

  /**
   * Adds to the gradients those of λ/2 Σ_u ‖own_u − generic‖², spread over each annotator's rows so that an epoch sums to
   * it once; gives the step's share. The generic adapter stands still in it.
   *
   * @param weight Σ w over the step's groups, by which its loss is divided
   */
  pull(groups: readonly Group[], adapters: readonly number[], weight: number): number {
    const { penalty } = this.options;
    if (penalty === 0) return 0;
    const share = new Map<number, number>();
    groups.forEach(({ annotator, weight: w }, i) => {
      if (adapters[i] === 0 || w === 0) return;
      share.set(adapters[i], (share.get(adapters[i]) ?? 0) + w / this.#votes.get(annotator!)!);
    });
    let loss = 0;
    for (const [u, part] of share) {
      const scale = (penalty * part) / weight;
      this.bank.own(u).forEach((factor, k) => {
        const own = this.bank.values(factor);
        const generic = this.bank.values(this.bank.own(0)[k]);
        const gradient = this.bank.gradient(factor);
        for (let i = 0; i < own.length; i++) {
          const d = own[i] - generic[i];
          gradient[i] += scale * d;
          loss += (scale / 2) * d * d;
        }
      });
    }
    return loss;
  }
}

/** Throws BAD_DATA where adapters by annotator were asked for and no row names one. */
export function checkNamed(annotators: readonly string[], files: readonly string[]): void {
  if (annotators.length > 0) return;
  throw new PluralignError(
    'BAD_DATA',
    `${files.join(', ')}: no row names an annotator, but adapter.per is annotator; add the field "annotator", or write ` +
      'adapter.per: all',
  );
}
