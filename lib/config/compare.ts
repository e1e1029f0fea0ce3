import { isDeepStrictEqual } from 'node:util';
import type { ResolvedConfig } from './schema.js';

/** A setting that two configurations do not share, by its dotted path. */
export interface ConfigDifference {
  path: string;
  was: unknown;
  now: unknown;
}

const isMapping = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function differences(was: unknown, now: unknown, path: string): ConfigDifference[] {
  if (isMapping(was) && isMapping(now)) {
    const keys = new Set([...Object.keys(was), ...Object.keys(now)]);
    return [...keys].flatMap((key) => differences(was[key], now[key], path === '' ? key : `${path}.${key}`));
  }
  return isDeepStrictEqual(was, now) ? [] : [{ path, was, now }];
}

export function configDifferences(was: ResolvedConfig, now: ResolvedConfig): ConfigDifference[] {
  return differences(was, now, '');
}

/** Settings that leave the mathematics of a run as it is, but for rounding. */
const harmless = new Set([
  'output',
  'rollout.at_once',
  'soups.side_by_side',
  'train.device',
  'train.eval_every',
  'train.gradient_checkpointing',
  'train.keep_checkpoints',
  'train.log_every',
  'train.max_tokens_per_pack',
  'train.save_every',
  'train.threads',
]);

/**
 * Whether a resumed run may take a changed setting. A longer or shorter run only with a constant learning rate without
 * warm-up: every other schedule depends on the length from its first step on.
 */
export function mayChangeOnResume(difference: ConfigDifference, now: ResolvedConfig): boolean {
  if (harmless.has(difference.path) || /^train\.early_stopping(\.|$)/.test(difference.path)) return true;
  // Where the phase for all ends depends on the length too.
  if (now.adapter !== 'full' && now.adapter.init !== 'shared') return false;
  if (difference.path !== 'train.epochs' && difference.path !== 'train.steps') return false;
  return now.train.schedule === 'constant' && now.train.warmup === 0;
}
