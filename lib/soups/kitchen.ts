import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { Bank } from '../adapters/bank.js';
import type { LayerBlock } from '../adapters/mix.js';
import { makeFolder } from '../base/files.js';
import { mix32, Random } from '../base/random.js';
import type { ResolvedAdapter, ResolvedConfig } from '../config/index.js';
import { encodePrompt } from '../data/encode.js';
import type { Row } from '../data/types.js';
import { generate } from '../generation/engine.js';
import type { SequenceRequest } from '../generation/request.js';
import { keepsRank, mergeMethods } from '../merge/methods.js';
import { PluralignError } from '../native/errors.js';
import type { LogitMix } from '../native/generation.js';
import type { RewardFunction } from '../rewards/types.js';
import { JointRuns } from '../rl/joint-runs.js';
import { type Prompt, withText } from '../rl/prompts.js';
import { type SampleFunction, sampler, samplesOf } from '../rl/sampling.js';
import type { SharedBase } from '../training/shared-base.js';
import type { TrainOptions } from '../training/train.js';
import type { Evaluated, Points } from './points.js';
import { mergedPolicy, seedOf, trainedOnPairs, trainedOnText, trainedPolicy, writeRows } from './policies.js';
import { backbone, combinationsOf, objectivesOf, promptFor, rewardsOf, weightsName } from './wishes.js';

/** A policy's answers when somebody has these wishes. */
export type Answerer = (chosen: readonly number[]) => Promise<Evaluated>;

/** Samples of the base that supervised rows are the best of. */
const bestOf = 8;

/** Makes every policy that a run of soups compares, trained or merged on first use, and has it judged. */
export class Kitchen {
  onDone: (done: number) => void = () => {};
  #done = 0;

  constructor(
    readonly config: ResolvedConfig,
    readonly prompts: readonly Prompt[],
    readonly points: Points,
    readonly options: TrainOptions,
    readonly stop: { signal: AbortSignal; flag: Int32Array },
  ) {}

  private get soups() {
    return this.config.soups!;
  }

  private get trainOptions(): TrainOptions {
    // All policies are rewarded on one scale.
    const rewardScale = this.points.rewards.scale ? this.points.rewards.scaleByName() : undefined;
    return { ...this.options, stop: this.stop, rewardScale };
  }

  private get names(): string[] {
    return this.soups.wishes.map((wish) => wish.name);
  }

  /** Policies to be trained and judged, about. */
  work(weights: readonly number[][], combinations: number): number {
    const { merges, sums, baselines, wishes } = this.soups;
    const fronts =
      merges.length + sums.length - 1 + baselines.filter((b) => ['morl', 'backbones', 'modpo'].includes(b)).length;
    return 1 + wishes.length + fronts * weights.length + combinations * (2 + baselines.length);
  }

  private async judged(make: () => Promise<Evaluated>): Promise<Evaluated> {
    if (this.stop.signal.aborted) throw new PluralignError('ABORTED', 'stopped on request; go on with --resume');
    const found = await make();
    this.onDone(++this.#done);
    return found;
  }

  private train(
    name: string,
    weights: readonly number[],
    more: { seed?: number } = {},
    options: TrainOptions = this.trainOptions,
  ): Promise<string> {
    const rewards = rewardsOf(this.soups.wishes, weights);
    return trainedPolicy(this.config, { name, rewards, ...more }, options);
  }

  private spread(chosen: readonly number[], weights: readonly number[]): number[] {
    const all = this.names.map(() => 0);
    chosen.forEach((wish, k) => {
      all[wish] = weights[k];
    });
    return all;
  }

  /** Trains the experts that are not there yet, `side_by_side` at a time; to the bits that each comes to alone. */
  async experts(wishes: readonly number[]): Promise<void> {
    const { side_by_side: atOnce } = this.soups;
    const rewarded = wishes.filter((wish) => !this.soups.wishes[wish].pairs);
    for (let at = 0; atOnce > 1 && at < rewarded.length; at += atOnce) {
      const runs = rewarded.slice(at, at + atOnce).map((wish) => (beside: SharedBase) => this.expert(wish, beside));
      await new JointRuns(this.points.model).all(runs);
    }
  }

  /** The folder of a wish's expert. */
  expert(wish: number, beside?: SharedBase): Promise<string> {
    const seed = seedOf(this.config, wish);
    const { pairs } = this.soups.wishes[wish];
    if (pairs)
      return trainedOnPairs(this.config, { name: `experts/${this.names[wish]}`, pairs, seed }, this.trainOptions);
    const options = { ...this.trainOptions, ...(beside && { beside, quiet: true }) };
    return this.train(`experts/${this.names[wish]}`, this.spread([wish], [1]), { seed }, options);
  }

  /** Experts merged: P-Soups, and every other method of merging. */
  async merged(method: string, chosen: readonly number[], weights: readonly number[]): Promise<Evaluated> {
    const names = chosen.map((wish) => this.names[wish]);
    const experts: { name: string; dir: string }[] = [];
    for (const wish of chosen) experts.push({ name: this.names[wish], dir: await this.expert(wish) });
    const name = weightsName(names, weights);
    const used = weights.flatMap((w, i) => (w === 0 ? [] : [{ w, i }]));
    const alone = used.length === 1 && used[0].w === 1;
    const id = alone ? `expert ${names[used[0].i]}` : `${method} ${name}`;
    const own = (this.config.adapter as ResolvedAdapter).r;
    const known = mergeMethods[method];
    const rank = this.soups.rank ?? (known && !keepsRank(known) ? own : null);
    const options = { name, rank: method === 'cat' || !known ? null : rank, seed: 0 };
    const make = () => mergedPolicy(this.config.output, experts, weights, method, options);
    return this.judged(async () => this.points.of(id, await make()));
  }

  /** Experts concatenated with weights by runs of layers, which cover all. */
  async mergedByLayer(chosen: readonly number[], blocks: readonly LayerBlock[]): Promise<Evaluated> {
    if (blocks.length === 1) return this.merged('cat', chosen, blocks[0].weights);
    const experts: { name: string; dir: string }[] = [];
    for (const wish of chosen) experts.push({ name: this.names[wish], dir: await this.expert(wish) });
    // Weights of many layers are too long for a file's name.
    const hash = createHash('sha256')
      .update(JSON.stringify([experts.map(({ name }) => name), blocks]))
      .digest('hex');
    const name = `layers-${hash.slice(0, 16)}`;
    const options = { name, rank: null, seed: 0, blocks };
    const make = () => mergedPolicy(this.config.output, experts, blocks[0].weights, 'cat', options);
    return this.judged(async () => this.points.of(`cat ${name}`, await make()));
  }

  /** Experts whose next-token distributions are mixed as answers are sampled, without merging (MOD). */
  async logits(chosen: readonly number[], weights: readonly number[], mix: LogitMix): Promise<Evaluated> {
    const { model, prompts } = this.points;
    const names = chosen.map((wish) => this.names[wish]);
    const sources: { name: string; dir: string; trainable: boolean }[] = [];
    for (const wish of chosen) sources.push({ name: this.names[wish], dir: await this.expert(wish), trainable: false });
    const bank = await Bank.fromPeft(model.shape, sources);
    const rollout = this.config.rollout!;
    const sample: SampleFunction = async (asked, seed) => {
      const requests = asked.map(
        ({ prompt }, i): SequenceRequest => ({
          prompt,
          policy: { adapters: sources.map((_, k) => k), weights, mix },
          maxNewTokens: rollout.max_new_tokens,
          temperature: rollout.temperature,
          topK: rollout.top_k,
          topP: rollout.top_p,
          seed: (seed + i) >>> 0,
        }),
      );
      const said = await generate(model, bank, requests, { abort: this.stop.flag, text: 'none' });
      return said.map(({ tokens }) => tokens);
    };
    const id = `logits ${mix} ${weightsName(names, weights)}`;
    return this.judged(() => this.points.measure(id, sample, prompts, null));
  }

  /** Multi-objective training at these weights (MORL). */
  async morl(chosen: readonly number[], weights: readonly number[]): Promise<Evaluated> {
    // One wish alone is that wish's expert.
    if (weights.includes(1)) return this.merged('cat', chosen, weights);
    const name = weightsName(
      chosen.map((wish) => this.names[wish]),
      weights,
    );
    const make = () => this.train(`morl/${name}`, this.spread(chosen, weights));
    return this.judged(async () => this.points.of(`morl ${name}`, await make()));
  }

  /** One policy by the pairs of the weightiest wish, the others' experts standing for what is wanted besides (MODPO). */
  async modpo(chosen: readonly number[], weights: readonly number[]): Promise<Evaluated> {
    if (weights.includes(1)) return this.merged('cat', chosen, weights);
    const main = weights.indexOf(Math.max(...weights));
    const rewards: { adapter: string; weight: number }[] = [];
    for (const [k, wish] of chosen.entries())
      if (k !== main && weights[k] > 0) rewards.push({ adapter: await this.expert(wish), weight: weights[k] });
    const name = weightsName(
      chosen.map((wish) => this.names[wish]),
      weights,
    );
    const { pairs } = this.soups.wishes[chosen[main]];
    const policy = { name: `modpo/${name}`, pairs: pairs!, modpo: { weight: weights[main], rewards } };
    const make = () => trainedOnPairs(this.config, policy, this.trainOptions);
    return this.judged(async () => this.points.of(`modpo ${name}`, await make()));
  }

  /** Backbones trained on mixed rewards, merged so that their mixtures add up to the weights (Bone Soup). */
  async fromBackbones(chosen: readonly number[], weights: number[], lambda: number[]): Promise<Evaluated> {
    const backbones: { name: string; dir: string }[] = [];
    for (const [j, wish] of chosen.entries()) {
      const mixture = this.spread(chosen, backbone(j, chosen.length, this.soups.mixing));
      const dir = await this.train(`backbones/${this.names[wish]}`, mixture);
      backbones.push({ name: this.names[wish], dir });
    }
    const name = weightsName(
      chosen.map((wish) => this.names[wish]),
      weights,
    );
    const options = { name: `backbones-${name}`, rank: null, seed: 0 };
    const make = () => mergedPolicy(this.config.output, backbones, lambda, 'cat', options);
    return this.judged(async () => this.points.of(`backbones ${name}`, await make()));
  }

  /** One policy for everybody: the mean of the wishes of the front. */
  oneReward(): Promise<Evaluated> {
    const chosen = this.soups.front.map((name) => this.names.indexOf(name));
    const make = () =>
      this.train(
        'one-reward',
        this.spread(
          chosen,
          chosen.map(() => 1 / chosen.length),
        ),
      );
    return this.judged(async () => this.points.of('one reward', await make()));
  }

  /** The base, told the wishes (PP). */
  prompted(chosen: readonly number[]): Promise<Evaluated> {
    return this.judged(() => this.points.of(`prompting ${this.told(chosen)}`, null, this.promptsFor(chosen)));
  }

  /** Supervised on the best of several samples for each wish, told the wishes (MT). */
  async sft(chosen: readonly number[]): Promise<Evaluated> {
    const rows = await this.supervisedRows();
    const dir = await trainedOnText(this.config, 'sft', rows, this.trainOptions);
    return this.judged(() => this.points.of(`sft ${this.told(chosen)}`, dir, this.promptsFor(chosen)));
  }

  /** One policy that is told the wishes, trained on the mean of what the named ones make of an answer (P-MORL). */
  async pMorl(chosen: readonly number[]): Promise<Evaluated> {
    const { wishes } = this.soups;
    const all = combinationsOf(wishes);
    const random = new Random(this.config.train.seed, 0x9a31);
    const told = this.prompts.map((prompt) => {
      const drawn = all[random.below(all.length)];
      return { prompt: withText(prompt.text, promptFor(wishes, drawn)), drawn };
    });
    const named = new Map(told.map(({ prompt, drawn }) => [JSON.stringify(prompt), drawn]));
    const prompts = await this.rows('p-morl.jsonl', () => told.map(({ prompt }) => ({ prompt })));
    const reward: RewardFunction = async (samples) => {
      const objectives = objectivesOf(wishes, await this.points.rewards.score(samples));
      return samples.map((sample, i) => {
        const wanted = named.get(JSON.stringify(sample.prompt))!;
        return wanted.reduce((sum, wish) => sum + objectives[wish][i], 0) / wanted.length;
      });
    };
    const rewards = [{ ...rewardsOf(wishes, this.spread([0], [1]))[0], ...plain }];
    const dir = await trainedPolicy(
      this.config,
      { name: 'p-morl', rewards, prompts, functions: { named: reward } },
      this.trainOptions,
    );
    return this.judged(() => this.points.of(`P-MORL ${this.told(chosen)}`, dir, this.promptsFor(chosen)));
  }

  private told(chosen: readonly number[]): string {
    return chosen.map((wish) => this.names[wish]).join('-');
  }

  private promptsFor(chosen: readonly number[]): Prompt[] {
    const encode = encodePrompt(this.points.model.tokenizer);
    const text = promptFor(this.soups.wishes, chosen);
    return this.points.prompts.map((prompt) => {
      const whole = withText(prompt.text, text);
      return { ...prompt, text: whole, prompt: encode({ prompt: whole, origin: prompt.origin } as Row) };
    });
  }

  private async rows(name: string, make: () => Promise<unknown[]> | unknown[]): Promise<string> {
    const folder = join(this.config.output, 'rows');
    await makeFolder(folder);
    return writeRows(join(folder, name), make);
  }

  private supervisedRows(): Promise<string> {
    const { wishes } = this.soups;
    const { model, rewards } = this.points;
    return this.rows('sft.jsonl', async () => {
      const asked = this.prompts.flatMap((prompt) => Array.from({ length: bestOf }, () => prompt));
      const sample = sampler({ model, bank: null, adapter: -1 }, this.config.rollout!, this.stop.flag);
      const samples = samplesOf(asked, await sample(asked, mix32(this.config.train.seed + 0x5f7)), model);
      const objectives = objectivesOf(wishes, await rewards.score(samples));
      return this.prompts.flatMap((prompt, p) =>
        wishes.map((wish, k) => {
          let best = p * bestOf;
          for (let i = best; i < (p + 1) * bestOf; i++) if (objectives[k][i] > objectives[k][best]) best = i;
          return { prompt: withText(prompt.text, wish.prompt), completion: samples[best].completion };
        }),
      );
    });
  }
}

/** A function whose values are brought to size already. */
const plain = {
  type: 'function' as const,
  name: 'named',
  weight: 1,
  normalise: false,
  bound: 1e6,
  adapter: null,
  annotator: null,
  per: 'all' as const,
  lower: null,
  module: null,
  pattern: null,
  target: null,
};
