import type { ResolvedConfig } from '../config/index.js';
import { Grpo } from './grpo.js';
import type { PolicyMethod } from './policy.js';
import { Ppo } from './ppo.js';
import { ReinforcePlusPlus } from './reinforce.js';
import { Rloo } from './rloo.js';

/** The method of a configuration that learns from its own samples. */
export function policyMethod({ method, rloo, grpo, reinforce, ppo }: ResolvedConfig): PolicyMethod {
  switch (method) {
    case 'grpo':
      return new Grpo(grpo!);
    case 'reinforce++':
      return new ReinforcePlusPlus(reinforce!);
    case 'ppo':
      return new Ppo(ppo!);
    default:
      return new Rloo(rloo!);
  }
}

/** Methods that learn from their own samples. */
export const isPolicyMethod = (method: string): boolean => ['rloo', 'grpo', 'reinforce++', 'ppo'].includes(method);
