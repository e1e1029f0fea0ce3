import { existsSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { boundOf, type ResolvedRewardTerm } from '../config/rollout-schema.js';
import type { Model } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { Rewards } from './compose.js';
import { each, length, matches, readability, sentiment, wordLength } from './measures.js';
import { modelReward, policyReward } from './models.js';
import type { RewardFunction } from './types.js';

export interface RewardOptions {
  /** What `type: function` means, by name. */
  functions?: Readonly<Record<string, RewardFunction>>;
  /** Tokens of a pack of a reward model. */
  maxTokens: number;
  abort?: Int32Array;
  onWarning?: (text: string) => void;
}

/** Rewards of a configuration. Throws `BAD_CONFIG`, `NOT_FOUND` and what loading a reward model throws. */
export async function openRewards(
  terms: readonly ResolvedRewardTerm[],
  model: Model,
  options: RewardOptions,
): Promise<Rewards> {
  const found = [];
  for (const term of terms) {
    const { name, weight, normalise } = term;
    const bound = boundOf(term);
    if (bound === null)
      options.onWarning?.(
        `reward ${JSON.stringify(name)} has no bound: a policy can drive it as far as it goes; rewards.bound keeps it in reach`,
      );
    found.push({ name, weight, normalise, bound, of: await functionOf(term, model, options) });
  }
  return new Rewards(found);
}

async function functionOf(term: ResolvedRewardTerm, model: Model, options: RewardOptions): Promise<RewardFunction> {
  switch (term.type) {
    case 'sentiment':
      return each((sample) => sentiment(sample.completion));
    case 'readability':
      return each((sample) => readability(sample.completion));
    case 'word_length':
      return each((sample) => wordLength(sample.completion));
    case 'length':
      return each((sample) => length(sample, term.unit, term.target));
    case 'pattern': {
      const flags = term.count && !term.flags.includes('g') ? `${term.flags}g` : term.flags;
      const pattern = new RegExp(term.pattern!, flags);
      return each((sample) => matches(sample.completion, pattern, term.count));
    }
    case 'function': {
      const given = options.functions?.[term.name];
      if (given) return given;
      const names = Object.keys(options.functions ?? {});
      throw new PluralignError(
        'BAD_CONFIG',
        `rewards: ${JSON.stringify(term.name)} is a function, expected train(config, { rewards: { ${term.name} } }); found ` +
          (names.length > 0 ? names.join(', ') : 'none'),
      );
    }
    case 'module':
      return fromModule(term.module!, term.export);
    case 'policy':
      return policyReward(term.adapter!, model, options);
    case 'model':
      return modelReward(term, model, options);
  }
}

async function fromModule(path: string, name: string): Promise<RewardFunction> {
  if (!existsSync(path)) throw new PluralignError('NOT_FOUND', `rewards: ${path} is not there`);
  const module = (await import(pathToFileURL(path).href).catch((error: Error) => {
    throw new PluralignError('BAD_CONFIG', `rewards: ${path} does not load: ${error.message}`, { cause: error });
  })) as Record<string, unknown>;
  const found = module[name];
  if (typeof found === 'function') return found as RewardFunction;
  throw new PluralignError(
    'BAD_CONFIG',
    `rewards: ${path} exports ${Object.keys(module).join(', ') || 'nothing'}, expected a function ${JSON.stringify(name)}`,
  );
}
