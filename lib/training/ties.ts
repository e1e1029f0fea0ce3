import { existsSync, readFileSync } from 'node:fs';
import type { ResolvedConfig, ResolvedLoss } from '../config/index.js';
import type { Group } from '../data/types.js';
import { tieNu } from '../losses/index.js';
import { runPaths } from './run-folder.js';

/** How votes tie. */
export type Ties = Pick<ResolvedLoss, 'ties' | 'tie_nu'>;

/** `loss.tie_nu` in full: from the share of ties among the training pairs where it is not given. */
export function withTieNu(loss: ResolvedLoss, groups: readonly Group[]): ResolvedLoss {
  if (loss.ties === 'drop' || loss.tie_nu !== null) return loss;
  const pairs = groups.filter((g) => g.kind === 'pair');
  const share = pairs.filter((g) => g.tie).length / Math.max(1, pairs.length);
  return { ...loss, tie_nu: tieNu(loss.ties, share) };
}

/** How votes tie under a finished run, ν as it was taken from its data. */
export function tieSettingsOf(run: string, config: Pick<ResolvedConfig, 'loss'>): Ties {
  const { ties, tie_nu } = config.loss;
  const { summary } = runPaths(run);
  if (ties === 'drop' || tie_nu !== null || !existsSync(summary)) return { ties, tie_nu };
  return { ties, tie_nu: (JSON.parse(readFileSync(summary, 'utf8')) as { tie_nu?: number }).tie_nu ?? null };
}
