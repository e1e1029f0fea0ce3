import type { ResolvedConfig } from '../config/index.js';
import type { Group, Row } from '../data/types.js';
import { DpoObjective } from './dpo.js';
import { GroupRobustObjective } from './group-robust.js';
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
  const { group_robust } = config.loss;
  const objective = plainObjective(config);
  return group_robust ? new GroupRobustObjective(objective, group_robust) : objective;
}

function plainObjective({ method, loss }: Pick<ResolvedConfig, 'method' | 'loss'>): MethodObjective {
  switch (method) {
    case 'dpo':
    case 'em-dpo':
      // MODPO's implicit reward is 1/w_0 of DPO's; its other wishes' rewards come with the reference.
      return new DpoObjective(loss.modpo ? { ...loss, beta: loss.beta / loss.modpo.weight } : loss);
    case 'reward':
    case 'em-reward':
      return new RewardObjective(loss);
    default:
      return new SftObjective();
  }
}

/** Kinds of rows that a method reads. */
export function kindsOf(method: ResolvedConfig['method']): Row['kind'][] {
  if (method === 'dpo') return ['pair', 'ranking', 'unpaired'];
  return ['reward', 'em-dpo', 'em-reward'].includes(method) ? ['pair', 'ranking'] : ['text'];
}
