import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { LayerBlock } from '../adapters/mix.js';
import { writeFileAtomic } from '../base/files.js';
import { mix32 } from '../base/random.js';
import type { ResolvedConfig } from '../config/index.js';
import { boundOf, type ResolvedRewardTerm, rewardTermSchema } from '../config/rollout-schema.js';
import type { ResolvedWish } from '../config/soups-schema.js';
import { mergeExperts } from '../merge/index.js';
import { PluralignError } from '../native/errors.js';
import type { RewardFunction } from '../rewards/types.js';
import { type TrainOptions, train } from '../training/train.js';

/** A policy that the run trains, in a run folder of its own below it. */
export interface Trained {
  /** Below the run's folder. */
  name: string;
  rewards: ResolvedRewardTerm[];
  /** In place of the run's prompts. */
  prompts?: string;
  functions?: Record<string, RewardFunction>;
  seed?: number;
}

function isFinished(run: string): boolean {
  const path = join(run, 'summary.json');
  if (!existsSync(path)) return false;
  return (JSON.parse(readFileSync(path, 'utf8')) as { finished?: boolean }).finished === true;
}

/** A seed for the k-th expert's first A and samples; expert 0 has the run's own. */
export const expertSeed = (seed: number, k: number): number => (k === 0 ? seed : mix32(seed + 0x50b5 * k));

/** The seed of a wish's expert: its own, or that of all. */
export const seedOf = ({ soups, train: { seed } }: ResolvedConfig, wish: number): number =>
  soups!.init === 'own' ? expertSeed(seed, wish) : seed;

/**
 * Wishes whose rewards are all there: where one has pairs alone, its expert is trained, and what that thinks of an answer
 * is the reward.
 */
export async function withRewards(config: ResolvedConfig, options: TrainOptions): Promise<ResolvedConfig> {
  const wishes: ResolvedWish[] = [];
  for (const [i, wish] of config.soups!.wishes.entries()) {
    if (wish.rewards !== null) {
      wishes.push(wish);
      continue;
    }
    const policy = { name: `experts/${wish.name}`, pairs: wish.pairs!, seed: seedOf(config, i) };
    const adapter = await trainedOnPairs(config, policy, options);
    const term = rewardTermSchema.parse({ type: 'policy', adapter });
    wishes.push({ ...wish, rewards: [{ ...term, name: 'policy', bound: boundOf(term) }] });
  }
  return { ...config, soups: { ...config.soups!, wishes } };
}

/** Trains a policy unless it is there already, going on where it was stopped; its adapter's folder. */
export async function trainedPolicy(config: ResolvedConfig, policy: Trained, options: TrainOptions): Promise<string> {
  const output = join(config.output, policy.name);
  const soups = config.soups!;
  if (!isFinished(output)) {
    const own: ResolvedConfig = {
      ...config,
      method: soups.method,
      soups: null,
      rewards: policy.rewards,
      data: { ...config.data, eval: null, ...(policy.prompts && { train: [policy.prompts], split: null }) },
      train: { ...config.train, seed: policy.seed ?? config.train.seed },
      output,
    };
    await finished(own, { ...options, rewards: { ...options.rewards, ...policy.functions } });
  }
  return join(output, 'adapter');
}

/** Trains a policy on preferences by a wish (dpo), with other wishes' policies as rewards (MODPO) where given. */
export async function trainedOnPairs(
  config: ResolvedConfig,
  policy: { name: string; pairs: string[]; seed?: number; modpo?: ResolvedConfig['loss']['modpo'] },
  options: TrainOptions,
): Promise<string> {
  const output = join(config.output, policy.name);
  if (!isFinished(output)) {
    const own: ResolvedConfig = {
      ...config,
      method: 'dpo',
      ...unused,
      loss: { ...config.loss, type: [{ type: 'sigmoid', weight: 1 }], modpo: policy.modpo ?? null },
      data: { ...config.data, train: policy.pairs, eval: null, split: null },
      train: { ...config.train, seed: policy.seed ?? config.train.seed },
      output,
    };
    await finished(own, options);
  }
  return join(output, 'adapter');
}

/** Blocks that only policies on their own samples read. */
const unused = { soups: null, rewards: null, rollout: null, rloo: null, grpo: null, reinforce: null, ppo: null };

/** Supervised training on rows of the run's own making. */
export async function trainedOnText(
  config: ResolvedConfig,
  name: string,
  rows: string,
  options: TrainOptions,
): Promise<string> {
  const output = join(config.output, name);
  if (!isFinished(output)) {
    const own: ResolvedConfig = {
      ...config,
      method: 'sft',
      ...unused,
      data: { ...config.data, train: [rows], eval: null, split: null },
      output,
    };
    await finished(own, options);
  }
  return join(output, 'adapter');
}

async function finished(given: ResolvedConfig, options: TrainOptions): Promise<void> {
  // The soup's evaluation rows are for all its policies at the end.
  const config = given.data.split ? given : { ...given, train: { ...given.train, eval_every: null } };
  const summary = await train(config, { ...options, resume: true });
  if (!summary.finished)
    throw new PluralignError('ABORTED', `stopped in ${config.output}; what is done is kept, go on with --resume`);
}

/** The adapter that merges experts with these weights: the expert itself where one has all, else a folder below the run. */
export async function mergedPolicy(
  run: string,
  experts: readonly { name: string; dir: string }[],
  weights: readonly number[],
  method: string,
  options: { name: string; rank: number | null; seed: number; blocks?: readonly LayerBlock[] },
): Promise<string> {
  const { blocks = [] } = options;
  const used = experts.flatMap((expert, i) =>
    [weights, ...blocks.map((block) => block.weights)].every((w) => w[i] === 0)
      ? []
      : [{ ...expert, weight: weights[i], of: i }],
  );
  if (blocks.length === 0 && used.length === 1 && used[0].weight === 1) return used[0].dir;
  const output = join(run, 'merged', method, options.name);
  if (existsSync(join(output, 'adapter_config.json'))) return output;
  await mergeExperts({
    experts: used.map(({ name, dir }) => ({ name, dir })),
    weights: Object.fromEntries(used.map(({ name, weight }) => [name, weight])),
    layerWeights: blocks.map(({ first, last, weights }) => ({
      layers: [first, last],
      weights: Object.fromEntries(used.map(({ name, of }) => [name, weights[of]])),
    })),
    method,
    ...(options.rank === null ? {} : { rank: options.rank }),
    output,
    seed: options.seed,
    as: 'adapter',
  });
  return output;
}

/** Writes rows for a policy to be trained on, unless they are there. */
export async function writeRows(path: string, make: () => Promise<unknown[]> | unknown[]): Promise<string> {
  if (!existsSync(path)) {
    const rows = await make();
    await writeFileAtomic(path, rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  }
  return path;
}
