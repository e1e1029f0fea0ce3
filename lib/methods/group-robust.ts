import type { Group } from '../data/types.js';
import { PluralignError } from '../native/errors.js';
import type { MethodObjective } from './index.js';
import type { LossOutcome, Scores, Totals } from './objective.js';

export interface GroupRobustOptions {
  /** η of α_g ← α_g exp(η (L_g + c/√n_g)). */
  step_size: number;
  /** c of the size adjustment c/√n_g. */
  adjustment: number;
}

/**
 * Training for the worst of known groups: min_θ max_α Σ_g α_g L_g over the simplex, by exponentiated gradient on α, which
 * lasts over steps. L_g is estimated from a step's rows by importance, (W/W_g) · weighted mean over the step of the group's losses,
 * so that a step without a group's rows says nothing of it and the expectation is exact.
 *
 * Source: group-robust preference optimisation (Ramesh et al. 2024, arXiv 2405.20304, algorithm 1), with the size
 * adjustment of group DRO (Sagawa et al. 2020). The loss is any that does not couple rows, such as sigmoid (GR-DPO) or ipo
 * (GR-IPO).
 */
export class GroupRobustObjective implements MethodObjective {
  readonly read;
  readonly reference;
  readonly squares;
  readonly summing;
  /** α moves with the whole step's losses. */
  readonly coupled = true;
  /** Rows of each group in the training data, and Σ w over them; null before `check`. */
  #sizes: Map<string, { rows: number; weight: number }> | null = null;
  #weights = new Map<string, number>();

  constructor(
    readonly inner: MethodObjective,
    readonly options: GroupRobustOptions,
  ) {
    if (inner.coupled)
      throw new PluralignError('BAD_CONFIG', 'loss.group_robust: needs a loss of single rows, such as sigmoid or ipo');
    this.read = inner.read;
    this.reference = inner.reference;
    this.squares = inner.squares;
    this.summing = inner.summing;
  }

  /** The first call is with the training rows: their groups are those that α is over. */
  check(groups: readonly Group[]): void {
    this.inner.check(groups);
    if (this.#sizes) return;
    this.#sizes = new Map();
    for (const { group, origin, weight } of groups) {
      if (group === undefined)
        throw new PluralignError(
          'BAD_DATA',
          `${origin.file}:${origin.line}: found no "group", expected one in every row: loss.group_robust is for known groups`,
        );
      const size = this.#sizes.get(group) ?? { rows: 0, weight: 0 };
      this.#sizes.set(group, { rows: size.rows + 1, weight: size.weight + weight });
    }
    // Rows that weigh nothing say nothing of their group.
    for (const [name, { weight }] of this.#sizes) if (!(weight > 0)) this.#sizes.delete(name);
    for (const name of this.#sizes.keys()) this.#weights.set(name, 1 / this.#sizes.size);
  }

  sums(groups: readonly Group[], values: Float32Array, offsets: Int32Array): Float64Array {
    return this.inner.sums(groups, values, offsets);
  }

  totals(groups: readonly Group[]): Totals {
    return this.inner.totals(groups);
  }

  loss(scores: Scores, totals: Totals, training: boolean): LossOutcome {
    if (!training) return this.inner.loss(scores, totals, false);
    const losses = this.#losses(scores, totals);
    this.#step(losses);
    const groups = scores.groups.map((g) => ({ ...g, weight: g.weight * this.#factor(g.group!) }));
    const outcome = this.inner.loss({ ...scores, groups }, totals, true);
    // What the rows look like is told of the rows as they were given.
    const rows = this.inner.loss(scores, totals, false);
    const metrics = { ...rows.metrics };
    for (const [name, loss] of losses) metrics[`group_loss/${name}`] = loss;
    for (const [name, weight] of this.#weights) metrics[`group_weight/${name}`] = weight;
    return { ...outcome, metrics, rows: rows.rows };
  }

  /** α_g times the importance: what a row of the group weighs. */
  #factor(name: string): number {
    return (this.#weights.get(name) ?? 0) * this.#importance(name);
  }

  /** Σ w over all rows ÷ Σ w over the group's (n/n_g where every row weighs 1). */
  #importance(name: string): number {
    const own = this.#sizes!.get(name);
    const total = [...this.#sizes!.values()].reduce((sum, { weight }) => sum + weight, 0);
    return own ? total / own.weight : 0;
  }

  /** The estimate of L_g for every group of the step. */
  #losses(scores: Scores, totals: Totals): Map<string, number> {
    const out = new Map<string, number>();
    for (const name of new Set(scores.groups.map((g) => g.group!))) {
      const groups = scores.groups.map((g) => (g.group === name ? g : { ...g, weight: 0 }));
      out.set(name, this.inner.loss({ ...scores, groups }, totals, false).loss * this.#importance(name));
    }
    return out;
  }

  #step(losses: ReadonlyMap<string, number>): void {
    const { step_size, adjustment } = this.options;
    let sum = 0;
    for (const [name, weight] of this.#weights) {
      const loss = losses.get(name);
      const pull = loss === undefined ? 0 : loss + adjustment / Math.sqrt(this.#sizes!.get(name)!.rows);
      const moved = weight * Math.exp(step_size * pull);
      this.#weights.set(name, moved);
      sum += moved;
    }
    for (const [name, weight] of this.#weights) this.#weights.set(name, weight / sum);
  }

  state(): unknown {
    return { weights: Object.fromEntries(this.#weights), inner: this.inner.state() };
  }

  restore(state: unknown): void {
    const { weights, inner } = state as { weights: Record<string, number>; inner: unknown };
    this.#weights = new Map(Object.entries(weights));
    this.inner.restore(inner);
  }
}
