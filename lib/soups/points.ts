import { Bank } from '../adapters/bank.js';
import { mix32 } from '../base/random.js';
import { RecordLog } from '../base/record-log.js';
import type { ResolvedConfig } from '../config/index.js';
import type { ResolvedWish } from '../config/soups-schema.js';
import { packTokens } from '../data/pack.js';
import type { Text } from '../data/types.js';
import type { Model } from '../model/model.js';
import type { Rewards } from '../rewards/compose.js';
import { evaluatePolicy } from '../rl/evaluate.js';
import type { Prompt } from '../rl/prompts.js';
import { type SampleFunction, sampler } from '../rl/sampling.js';
import { objectivesOf } from './wishes.js';

/** A policy's answers to the evaluation prompts, and what they are worth to each wish. */
export interface Evaluated {
  id: string;
  /** Mean over answers of what each wish makes of them, in deviations of the base, [wishes]. */
  objectives: number[];
  /** Of every answer, [wishes][answers]. */
  each: number[][];
  /** From the base, of a sequence; null where a prompt was changed or logits were mixed. */
  kl: number | null;
  length: number;
  ended: number;
  /** The first answers, for people. */
  answers: string[];
}

const shownPrompts = 4;

/** What is needed to judge a policy, and what was judged already: one line a policy in RUN/points.jsonl. */
export class Points {
  readonly #known = new Map<string, Evaluated>();

  private constructor(
    private readonly log: RecordLog<Evaluated>,
    readonly config: ResolvedConfig,
    readonly model: Model,
    readonly rewards: Rewards,
    readonly wishes: readonly ResolvedWish[],
    /** Evaluation prompts, each as often as it is answered. */
    readonly prompts: readonly Prompt[],
    readonly abort: Int32Array,
  ) {
    for (const found of log.records) this.#known.set(found.id, found);
  }

  static async open(
    path: string,
    ...rest: [ResolvedConfig, Model, Rewards, readonly ResolvedWish[], readonly Prompt[], Int32Array]
  ): Promise<Points> {
    return new Points(await RecordLog.open(path), ...rest);
  }

  /** A policy's answers: an adapter's folder (null: the base), with other prompts where given. */
  async of(id: string, dir: string | null, prompts: readonly Prompt[] | null = null): Promise<Evaluated> {
    const known = this.#known.get(id);
    if (known) return known;
    const bank =
      dir === null ? null : await Bank.fromPeft(this.model.shape, [{ name: 'policy', dir, trainable: false }]);
    const policy = { model: this.model, bank, adapter: bank ? 0 : -1 };
    const sample = sampler(policy, this.config.rollout!, this.abort);
    return this.measure(id, sample, prompts, prompts ? null : policy);
  }

  /** A policy that is sampled in a way of its own. */
  async measure(
    id: string,
    sample: SampleFunction,
    prompts: readonly Prompt[] | null,
    policy: { model: Model; bank: Bank | null; adapter: number } | null,
  ): Promise<Evaluated> {
    const known = this.#known.get(id);
    if (known) return known;
    const { temperature } = this.config.rollout!;
    const compare = policy && {
      policy,
      reference: { model: this.model, bank: null, adapter: -1 },
      options: { temperature, maxTokens: packTokens(this.config.train), abort: this.abort },
    };
    // Every policy draws from the same numbers, so that differences are of policies.
    const seed = mix32(this.config.train.seed + 0x50b1);
    const { scores, samples, scored } = await evaluatePolicy(
      prompts ?? this.prompts,
      sample,
      seed,
      this.rewards,
      this.model,
      compare,
    );
    const each = objectivesOf(this.wishes, scored);
    const found: Evaluated = {
      id,
      objectives: each.map((values) => values.reduce((a, b) => a + b, 0) / values.length),
      each: each.map((values) => [...values].map((v) => Number(v.toFixed(6)))),
      kl: scores.kl ?? null,
      length: scores.completion_length,
      ended: scores.ended,
      answers: samples.slice(0, this.kept).map((sample) => sample.completion),
    };
    await this.log.append(found);
    this.#known.set(id, found);
    return found;
  }

  /** Answers that are kept as texts: to be shown, and to be judged. */
  private get kept(): number {
    const { samples, judge } = this.config.soups!;
    return Math.max(shownPrompts * samples, judge?.answers ?? 0);
  }

  /** The prompts whose first answers are shown, and where those stand. */
  get shown(): { prompt: Text; at: number }[] {
    const { samples } = this.config.soups!;
    const count = Math.min(shownPrompts, Math.ceil(this.prompts.length / samples));
    return Array.from({ length: count }, (_, i) => ({ prompt: this.prompts[i * samples].text, at: i * samples }));
  }
}
