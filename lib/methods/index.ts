import type { ResolvedConfig } from '../config/index.js';
import type { Group, Row } from '../data/types.js';
import { DpoObjective } from './dpo.js';
import type { Objective } from './objective.js';
import { RewardObjective } from './reward.js';
import { SftObjective } from './sft.js';

/** An objective that also says which rows it can use. */
export interface MethodObjective extends Objective {
  /** Throws BAD_DATA naming the first row that the method cannot use. */
  check(groups: readonly Group[]): void;
}

/** The objective of a configuration. */
export function objectiveOf(config: Pick<ResolvedConfig, 'method' | 'loss'>): MethodObjective {
  switch (config.method) {
    case 'dpo':
      return new DpoObjective(config.loss);
    case 'reward':
      return new RewardObjective(config.loss);
    default:
      return new SftObjective();
  }
}

/** Kinds of rows that a method reads. */
export function kindsOf(method: ResolvedConfig['method']): Row['kind'][] {
  if (method === 'dpo') return ['pair', 'ranking', 'unpaired'];
  return method === 'reward' ? ['pair', 'ranking'] : ['text'];
}
