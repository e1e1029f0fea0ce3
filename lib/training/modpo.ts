import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { Bank } from '../adapters/bank.js';
import { pack, splitByTokens } from '../data/pack.js';
import type { Group } from '../data/types.js';
import type { Objective } from '../methods/objective.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import type { Reference } from './scorer.js';

/** A frozen reward of another wish: a reward adapter, or a policy's β log π/π_ref. */
export interface MarginReward {
  /** Folder of PEFT files. */
  adapter: string;
  weight: number;
}

/**
 * Multi-objective DPO (MODPO, Zhou et al. 2023, arXiv 2310.03708): the implicit reward of the policy is
 * (1/w_0) [β log π/π_ref − Σ_i w_i r_i(x, y)], with the other wishes' rewards r_i frozen. The same as DPO with β/w_0 against
 * a reference of log-probabilities log π_ref + Σ_i w_i r_i / β, which is what this gives.
 */
export class MarginReference implements Reference, Disposable {
  readonly #kept = new WeakMap<Group, Float64Array>();

  private constructor(
    readonly inner: Reference & Disposable,
    readonly model: Model,
    readonly bank: Bank,
    readonly rewards: readonly MarginReward[],
    readonly beta: number,
    readonly maxTokens: number,
  ) {}

  /** Throws `NOT_FOUND` where a folder holds no adapter, and what loading it throws. */
  static async open(
    inner: Reference & Disposable,
    model: Model,
    rewards: readonly MarginReward[],
    beta: number,
    maxTokens: number,
  ): Promise<MarginReference> {
    for (const { adapter } of rewards) {
      if (!existsSync(join(adapter, 'adapter_config.json')))
        throw new PluralignError('NOT_FOUND', `loss.modpo.rewards: ${adapter} is no PEFT folder, expected one`);
    }
    const sources = rewards.map(({ adapter }, i) => ({ name: `reward ${i + 1}`, dir: adapter, trainable: false }));
    return new MarginReference(inner, model, await Bank.fromPeft(model.shape, sources), rewards, beta, maxTokens);
  }

  [Symbol.dispose](): void {
    this.bank.dispose();
    this.inner[Symbol.dispose]();
  }

  async sums(groups: readonly Group[], objective: Objective, abort?: Int32Array): Promise<Float64Array> {
    const base = await this.inner.sums(groups, objective, abort);
    const missing = groups.filter((g) => !this.#kept.has(g));
    for (const run of splitByTokens(missing, 1, this.maxTokens)) {
      const shifts = await this.#shifts(run, objective, abort);
      let at = 0;
      for (const g of run) {
        this.#kept.set(g, shifts.slice(at, at + g.completions.length));
        at += g.completions.length;
      }
    }
    const shifts = groups.flatMap((g) => [...this.#kept.get(g)!]);
    return base.map((logp, c) => logp + shifts[c]);
  }

  /** Σ_i w_i r_i / β of every completion. */
  async #shifts(run: readonly Group[], objective: Objective, abort?: Int32Array): Promise<Float64Array> {
    const out = new Float64Array(run.reduce((n, g) => n + g.completions.length, 0));
    const reference = await this.inner.sums(run, objective, abort);
    for (const [adapter, { weight }] of this.rewards.entries()) {
      const head = this.bank.adapters[adapter].head !== -1;
      const read = head ? 'reward' : 'logps';
      const p = pack(run, { policies: [{ adapter, grad: false }], read });
      const { values } = await this.model.score(p, this.bank, read, { abort });
      const scores = head ? values : objective.sums(run, values, p.offsets);
      // A policy's reward is β log π/π_ref, whose β cancels.
      for (let c = 0; c < out.length; c++)
        out[c] += head ? (weight * scores[c]) / this.beta : weight * (scores[c] - reference[c]);
    }
    return out;
  }
}
