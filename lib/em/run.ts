import { existsSync } from 'node:fs';
import { loadConfig, runConfigPath } from '../config/index.js';
import type { ResolvedConfig } from '../config/schema.js';
import type { Evaluation } from '../evaluation/preference.js';
import type { LoadOptions } from '../model/model.js';
import { PluralignError } from '../native/errors.js';
import { requireRun } from '../training/run-folder.js';
import type { Stop } from '../training/signals.js';
import { stopOf } from '../training/signals.js';
import type { Responsibility } from './files.js';

export interface EmRunOptions extends LoadOptions {
  run: string;
  data: readonly string[];
  stop?: Stop;
  note?: (text: string) => void;
}

/** The configuration of a run that finds types, else null (also where it is no run). */
export function emConfig(run: string): ResolvedConfig | null {
  const path = runConfigPath(run);
  if (!existsSync(path)) return null;
  const config = loadConfig(path);
  return config.em ? config : null;
}

async function requireTypes(run: string): Promise<ResolvedConfig> {
  await requireRun(run);
  const config = emConfig(run);
  if (config) return config;
  throw new PluralignError(
    'BAD_CONFIG',
    `${run}: found no run of em-dpo or em-reward; expected one, which knows its types`,
  );
}

/**
 * `eval --run`: rows under each annotator's own mixture of types; those the run does not know get the types' weights. Of
 * policies also each type alone, under `policies`. Throws what reading the run and the rows throws.
 */
export async function evaluateRun(
  options: EmRunOptions,
): Promise<Evaluation & { policies?: Record<string, Evaluation> }> {
  const config = await requireTypes(options.run);
  if (config.model !== 'features') return (await import('./language/run.js')).evaluatePolicies(config, options);
  const { evaluateFeatures } = await import('./features/run.js');
  return evaluateFeatures(options.run, config, options.data, stopOf(options.stop).signal);
}

/**
 * `pluralign assign`: what votes say of their annotators' types, the types' weights being the prior. Throws what reading the
 * run and the votes throws.
 */
export async function assignVotes(options: EmRunOptions): Promise<Responsibility[]> {
  const config = await requireTypes(options.run);
  if (config.model !== 'features') return (await import('./language/run.js')).assignPolicies(config, options);
  const { assignFeatures } = await import('./features/run.js');
  return assignFeatures(options.run, config, options.data, stopOf(options.stop).signal);
}
