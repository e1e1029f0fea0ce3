import type { z } from 'zod';
import { dotted } from './problems.js';
import {
  boundOf,
  grpoSchema,
  ppoSchema,
  reinforceSchema,
  type rewardTermSchema,
  rlooSchema,
  rolloutSchema,
} from './rollout-schema.js';
import type { Method, ParsedConfig, ResolvedConfig } from './schema.js';
import { trainedBy } from './soups.js';
import type { Path, Source } from './source.js';

/** Methods that learn from their own samples, with the block that each reads. */
export const rolloutMethods: Partial<Record<Method, 'rloo' | 'grpo' | 'reinforce' | 'ppo'>> = {
  rloo: 'rloo',
  grpo: 'grpo',
  'reinforce++': 'reinforce',
  ppo: 'ppo',
};

/** What policies that learn from their own samples need, and what others must not have. */
export function checkRollouts(config: ParsedConfig, source: Source): string[] {
  const wrong: string[] = [];
  const say = (path: Path, message: string) => wrong.push(`${source.locate(path)}: ${dotted(path)}: ${message}`);
  const { method } = config;
  const own = rolloutMethods[trainedBy(config)];
  const blocks = new Set(Object.values(rolloutMethods));
  for (const block of blocks) {
    if (config[block] !== null && block !== own)
      say([block], `belongs to method ${block === 'reinforce' ? 'reinforce++' : block}, but the method is ${method}`);
  }
  for (const block of ['rewards', 'rollout'] as const) {
    if (config[block] !== null && !own)
      say([block], `belongs to methods ${Object.keys(rolloutMethods).join(', ')}, but the method is ${method}`);
  }
  if (!own) return wrong;
  if (method === 'soups') {
    if (config.rewards !== null) say(['rewards'], 'belongs to each of soups.wishes');
  } else if (config.rewards === null)
    say(['rewards'], 'found nothing, expected a list of what answers are rewarded for');
  for (const block of ['rloo', 'ppo'] as const) {
    const { beta, target } = config[block] ?? { beta: undefined, target: null };
    if (beta === 0 && target !== null && target !== undefined)
      say([block, 'beta'], `found 0, which no target moves; expected more than 0, or ${block}.target: null`);
  }
  wrong.push(...checkRewards(config.rewards ?? [], ['rewards'], source));
  if (config.train.early_stopping !== null) say(['train', 'early_stopping'], `is not for method ${method}`);
  if (config.adapter !== null && config.adapter !== 'full' && (config.adapter.dropout ?? 0) > 0)
    say(
      ['adapter', 'dropout'],
      `found ${config.adapter.dropout}, expected 0: method ${method} compares a policy with itself`,
    );
  return wrong;
}

/** Rules of single rewards. */
export function checkRewards(
  rewards: readonly z.output<typeof rewardTermSchema>[],
  at: Path,
  source: Source,
): string[] {
  const wrong: string[] = [];
  const names = rewards.map((reward) => reward.name ?? reward.type);
  rewards.forEach((reward, k) => {
    const say = (key: string, message: string) => {
      const path = [...at, k, key];
      wrong.push(`${source.locate(path)}: ${dotted(path)}: ${message}`);
    };
    if (names.indexOf(names[k]) !== k) say('name', `two rewards are named ${names[k]}; give them names`);
    for (const [type, key] of [
      ['pattern', 'pattern'],
      ['model', 'adapter'],
      ['policy', 'adapter'],
      ['module', 'module'],
    ] as const) {
      const own = key === 'adapter' ? ['model', 'policy'] : [type];
      if (reward.type === type && reward[key] === null) say(key, `found nothing, expected what the ${type} is`);
      if (type === own[0] && !own.includes(reward.type) && reward[key] !== null)
        say(key, `belongs to type ${own.join(' or ')}, but the type is ${reward.type}`);
    }
    if (reward.lower !== null && reward.type !== 'model') say('lower', 'belongs to type model');
    if (reward.per === 'annotator' && reward.type !== 'model') say('per', 'belongs to type model');
    if (reward.per === 'annotator' && reward.annotator !== null) say('per', 'annotator is given too; leave one out');
    if (reward.annotator !== null && reward.type !== 'model') say('annotator', 'belongs to type model');
    if (reward.target !== null && reward.type !== 'length') say('target', 'belongs to type length');
    if (reward.type === 'function' && reward.name === null) say('name', 'a function needs the name it is given under');
    if (reward.weight === 0) say('weight', 'found 0, expected another number; leave the reward out');
    if (reward.pattern !== null) {
      try {
        new RegExp(reward.pattern, reward.flags);
      } catch (error) {
        say('pattern', (error as Error).message);
      }
    }
  });
  return wrong;
}

/** Rewards with their names and whole paths. */
export function resolveRewards(
  rewards: ParsedConfig['rewards'],
  path: (given: string) => string,
): ResolvedConfig['rewards'] {
  if (rewards === null) return null;
  return rewards.map((reward) => ({
    ...reward,
    name: reward.name ?? reward.type,
    bound: boundOf(reward),
    adapter: reward.adapter && path(reward.adapter),
    module: reward.module && path(reward.module),
  }));
}

/** The blocks of policies that learn from their own samples. */
export function resolveRollouts(config: ParsedConfig, path: (given: string) => string) {
  const own = rolloutMethods[trainedBy(config)];
  return {
    rewards: resolveRewards(config.rewards, path),
    rollout: own ? (config.rollout ?? rolloutSchema.parse({})) : null,
    rloo: own === 'rloo' ? (config.rloo ?? rlooSchema.parse({})) : null,
    grpo: own === 'grpo' ? (config.grpo ?? grpoSchema.parse({})) : null,
    reinforce: own === 'reinforce' ? (config.reinforce ?? reinforceSchema.parse({})) : null,
    ppo: own === 'ppo' ? (config.ppo ?? ppoSchema.parse({})) : null,
  };
}
