import { readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { stringify } from 'yaml';
import { errnoOf, ioError } from '../base/files.js';
import { PluralignError } from '../native/errors.js';
import { configError, schemaError } from './problems.js';
import { checkRollouts, resolveRollouts } from './rollouts.js';
import {
  adapterSchema,
  type Config,
  configSchema,
  emSchema,
  featuresSchema,
  type LossType,
  lossSchema,
  lossTypes,
  type Method,
  type ParsedConfig,
  type ResolvedAdapter,
  type ResolvedConfig,
  type ResolvedEm,
  type ResolvedFeatures,
  type ResolvedLoss,
} from './schema.js';
import { checkSoups, resolveSoups } from './soups.js';
import { applySets, type Path, parseYaml, type Source } from './source.js';
import { unusedKeys } from './unused.js';

const header = '# The configuration of this run, complete. Written by pluralign; it can be given to train again.\n';

const rewardLosses: readonly LossType[] = ['bradley_terry', 'plackett_luce', 'best', 's_dpo', 'lipo'];

/** The losses that a method can use, its own first. */
const methodLosses: Record<Method, readonly LossType[]> = {
  pretrain: ['sft'],
  sft: ['sft'],
  dpo: ['sigmoid', ...lossTypes.filter((type) => type !== 'sigmoid' && type !== 'bradley_terry')],
  reward: rewardLosses,
  // Those that are likelihoods of a choice or a ranking.
  'em-dpo': ['sigmoid', 'plackett_luce', 'best'],
  'em-reward': ['plackett_luce', 'bradley_terry', 'best'],
  // Their losses have blocks of their own.
  rloo: ['sft'],
  grpo: ['sft'],
  'reinforce++': ['sft'],
  ppo: ['sft'],
  soups: ['sft'],
};

/** Methods that can train rewards on the features of items. */
const featureMethods: readonly Method[] = ['reward', 'em-reward'];

/** Methods that find types of annotators. */
const emMethods: readonly Method[] = ['em-dpo', 'em-reward'];

/** Values of `em.init` that name a way to begin; any other is a file. */
export const namedInits: readonly string[] = ['random', 'k-means', 'spectral'];

/** Methods that can train an adapter for each annotator. */
const voterMethods: readonly Method[] = ['dpo', 'reward', 'rloo', 'grpo', 'reinforce++', 'ppo'];

function isPerAnnotator({ per, share }: { per: 'all' | 'annotator' | null; share: string }, method: Method): boolean {
  return voterMethods.includes(method) && (per ?? (share === 'none' ? 'all' : 'annotator')) === 'annotator';
}

/** Shares of the steps in the phase that trains one adapter for all. */
const initShares = { shared: null, 'warm-up': 0.2, global: 0.4 };

/** `loss.type` in full. */
function lossTerms(type: ParsedConfig['loss']['type'], method: Method): { type: LossType; weight: number }[] {
  const given = type ?? methodLosses[method][0];
  return (typeof given === 'string' ? [given] : given).map((term) =>
    typeof term === 'string' ? { type: term, weight: 1 } : term,
  );
}

/** Rules that span several keys; what is wrong, with its place. */
function crossCheck(config: ParsedConfig, source: Source, again: boolean): string[] {
  const wrong: string[] = [];
  const say = (path: Path, message: string) => wrong.push(`${source.locate(path)}: ${path.join('.')}: ${message}`);
  const { method, train, data, adapter } = config;
  if (train.epochs !== null && train.steps !== null)
    say(['train', 'steps'], 'train.epochs is given too; give one of them');
  if (data.eval !== null && data.split !== null) say(['data', 'split'], 'data.eval is given too; give one of them');
  if (train.early_stopping !== null && data.eval === null && data.split === null) {
    say(['train', 'early_stopping'], 'nothing to evaluate on; give data.eval or data.split');
  }
  for (const block of ['pretrain', 'reward'] as const) {
    if (config[block] !== null && method !== block && !(block === 'reward' && method === 'em-reward'))
      say([block], `belongs to method ${block}, but the method is ${method}`);
  }
  if (config.model === 'features') {
    if (!featureMethods.includes(method))
      say(['model'], `is features, which method ${method} cannot train; expected ${featureMethods.join(' or ')}`);
    // Types can be found over plain items too.
    if (data.items === null && method !== 'em-reward')
      say(['data', 'items'], 'found nothing, expected the table of items; model is features');
    if (method === 'em-reward' && lossTerms(config.loss.type, method).some(({ type }) => type === 'best'))
      say(['loss', 'type'], 'found best, which features do not take; give rankings of the best alone, top-1');
  } else {
    if (data.items !== null) say(['data', 'items'], 'is for model: features, but the model is another');
    if (config.features !== null) say(['features'], 'is for model: features, but the model is another');
    if (emMethods.includes(method)) wrong.push(...crossCheckTypes(config, source));
  }
  if (config.features) {
    const { model, columns, batch_size, choose } = config.features;
    const other = [model, ...(choose?.model ?? [])].find((name) => name !== 'low-rank');
    if (columns > 1 && other)
      say(['features', 'columns'], `features in columns are for model low-rank, but the model is ${other}`);
    if (columns > 1 && batch_size) say(['features', 'columns'], 'does not go with features.batch_size');
    if (batch_size && other)
      say(['features', 'batch_size'], `mini-batches are for model low-rank, but the model is ${other}`);
    if (choose && method !== 'reward') say(['features', 'choose'], `is for method reward, but the method is ${method}`);
  }
  if (config.em !== null && !emMethods.includes(method))
    say(['em'], `belongs to method ${emMethods.join(', ')}, but the method is ${method}`);
  wrong.push(...checkRollouts(config, source), ...checkSoups(config, source));
  if (method === 'pretrain') {
    if (adapter !== null && adapter !== 'full')
      say(['adapter'], 'pretrain trains all weights; leave it out or write full');
    if (config.model === null && config.pretrain === null) {
      say(['pretrain'], 'missing; describe the new model here, or give model: to go on from one');
    }
    if (config.model !== null && config.pretrain !== null) {
      say(['pretrain'], 'model is given too; give pretrain for a new model, or model to go on from one');
    }
  } else if (config.model === null) say(['model'], 'found nothing, expected a folder or hf:owner/name (or features)');
  if (config.loss.reference === 'init_from' && (adapter === 'full' || !adapter?.init_from)) {
    say(['loss', 'reference'], 'is init_from, but adapter.init_from is not given');
  }
  if (adapter !== null && adapter !== 'full') {
    const voters = isPerAnnotator(adapter, method);
    const no = voterMethods.includes(method) ? 'adapter.per: annotator' : `method ${voterMethods.join(' or ')}`;
    if (adapter.per === 'annotator' && !voterMethods.includes(method))
      say(['adapter', 'per'], `annotator needs method ${voterMethods.join(' or ')}, but the method is ${method}`);
    if (adapter.init !== 'shared' && !voters) say(['adapter', 'init'], `${adapter.init} needs ${no}`);
    if (adapter.init_share !== null && adapter.init === 'shared')
      say(['adapter', 'init_share'], 'belongs to adapter.init: warm-up or global');
    if (adapter.penalty > 0 && !voters) say(['adapter', 'penalty'], `needs ${no}`);
  }
  if (config.loss.ties !== 'drop') {
    const types = lossTerms(config.loss.type, method).map((term) => term.type);
    const fits = method === 'reward' || (method === 'dpo' && types.length === 1 && types[0] === 'sigmoid');
    if (!fits) say(['loss', 'ties'], `${config.loss.ties} needs method reward, or dpo with loss.type sigmoid`);
    else if (config.loss.label_smoothing > 0 || config.loss.f_divergence !== 'reverse_kl' || config.loss.use_weighting)
      say(['loss', 'ties'], `${config.loss.ties} goes with neither label_smoothing, f_divergence nor use_weighting`);
    if (config.loss.ties === 'rao_kupper' && config.loss.tie_nu !== null && config.loss.tie_nu <= 1)
      say(['loss', 'tie_nu'], `found ${config.loss.tie_nu}, expected a number above 1 for rao_kupper`);
  } else if (config.loss.tie_nu !== null) say(['loss', 'tie_nu'], 'belongs to loss.ties: rao_kupper or davidson');
  for (const { type } of lossTerms(config.loss.type, method)) {
    if (!methodLosses[method].includes(type)) {
      say(['loss', 'type'], `${type} is no loss of method ${method}; expected ${methodLosses[method].join(', ')}`);
    } else if (type === 'exo_pair' && config.loss.label_smoothing === 0) {
      say(['loss', 'type'], 'exo_pair needs loss.label_smoothing above 0 (its authors use 1e-3)');
    }
  }
  const perAnnotator = adapter !== null && adapter !== 'full' && isPerAnnotator(adapter, method);
  const types = lossTerms(config.loss.type, method).map(({ type }) => type);
  if (!again) for (const { path, message } of unusedKeys(config, types, perAnnotator)) say(path, message);
  if (config.loss.group_robust !== null && method !== 'dpo' && method !== 'reward')
    say(['loss', 'group_robust'], `belongs to methods dpo and reward, but the method is ${method}`);
  if (config.loss.modpo !== null && method !== 'dpo')
    say(['loss', 'modpo'], `belongs to method dpo, but the method is ${method}`);
  return wrong;
}

/** What EM over policies cannot take: everything that is no likelihood, or no run of rounds. */
function crossCheckTypes({ train, loss, adapter, em, method }: ParsedConfig, source: Source): string[] {
  const wrong: string[] = [];
  const say = (path: Path, message: string) => wrong.push(`${source.locate(path)}: ${path.join('.')}: ${message}`);
  const epochs = (em?.rounds ?? emDefaults.policies.rounds) * (em?.m_epochs ?? 1);
  if (train.steps !== null) say(['train', 'steps'], `${method} runs in rounds; give em.rounds and em.m_epochs`);
  if (train.epochs !== null && train.epochs !== epochs)
    say(
      ['train', 'epochs'],
      `found ${train.epochs}, but em.rounds × em.m_epochs are ${epochs}; leave it out, the rounds say how long a run is`,
    );
  if (train.early_stopping !== null) say(['train', 'early_stopping'], `is not for ${method}, which runs in rounds`);
  if (adapter === 'full') say(['adapter'], `is full, but ${method} trains an adapter for each type`);
  const noLikelihood = 'which makes the loss no likelihood, and EM needs one';
  if (loss.label_smoothing !== 0)
    say(['loss', 'label_smoothing'], `found ${loss.label_smoothing}, expected 0: ${noLikelihood}`);
  if (loss.f_divergence !== 'reverse_kl')
    say(['loss', 'f_divergence'], `found ${loss.f_divergence}, expected reverse_kl: ${noLikelihood}`);
  if (loss.use_weighting) say(['loss', 'use_weighting'], `found true, expected false: ${noLikelihood}`);
  if (loss.centring !== 0) say(['loss', 'centring'], `found ${loss.centring}, expected 0: ${noLikelihood}`);
  if (Array.isArray(loss.type) && loss.type.length > 1)
    say(['loss', 'type'], `found a sum of losses, expected one: ${noLikelihood}`);
  if (em && em.folds > 1 && em.e_step === 'incremental')
    say(['em', 'e_step'], 'is incremental, but em.folds looks at rows that the M-step leaves out; use exact');
  return wrong;
}

/** A loss with every default filled in, for code that has no whole configuration. Paths stay as they are. */
export function resolveLoss(loss: NonNullable<Config['loss']>, method: Method): ResolvedLoss {
  const parsed = lossSchema.safeParse(loss);
  if (!parsed.success) throw schemaError(parsed.error.issues, { value: loss, locate: () => 'loss' });
  return { ...parsed.data, type: lossTerms(parsed.data.type, method) };
}

function resolveAdapter(adapter: ParsedConfig['adapter'], method: Method, path: (given: string) => string) {
  if (adapter === 'full' || method === 'pretrain') return 'full';
  const parsed: ResolvedAdapter = adapter ?? adapterSchema.parse({});
  const given: ResolvedAdapter = {
    ...parsed,
    per: isPerAnnotator(parsed, method) ? 'annotator' : 'all',
    init_share: parsed.init_share ?? initShares[parsed.init],
  };
  // Beside init_from what is not given is the folder's own.
  if (given.init_from !== null) return { ...given, init_from: path(given.init_from) };
  return {
    ...given,
    r: given.r ?? 16,
    alpha: given.alpha ?? 32,
    targets: given.targets ?? 'all-linear',
    dropout: given.dropout ?? 0,
  };
}

function resolveModel(model: string | null, path: (given: string) => string): string | null {
  return model === null || model === 'features' || model.startsWith('hf:') ? model : path(model);
}

function resolveFeatures(config: ParsedConfig): ResolvedFeatures | null {
  if (config.model !== 'features') return null;
  const given = config.features ?? featuresSchema.parse({});
  return { ...given, l2: given.l2 ?? (config.method === 'reward' ? 1 : 0) };
}

const emDefaults = {
  policies: { choose_by: 'held_out', rounds: 5, init: 'k-means', restarts: 1 },
  features: { choose_by: 'bic', rounds: 60, init: 'random', restarts: 8 },
} as const;

function resolveEm(config: ParsedConfig, path: (given: string) => string): ResolvedEm | null {
  if (!emMethods.includes(config.method)) return null;
  const given = config.em ?? emSchema.parse({});
  const usual = emDefaults[config.model === 'features' ? 'features' : 'policies'];
  const init = given.init ?? usual.init;
  return {
    ...given,
    choose_by: given.choose_by ?? usual.choose_by,
    rounds: given.rounds ?? usual.rounds,
    restarts: given.restarts ?? usual.restarts,
    init: namedInits.includes(init) ? init : path(init),
  };
}

/** `again`: the configuration of a run, which stays readable whatever was said against it since. */
function resolveSource(source: Source, base: string, output: string | undefined, again = false): ResolvedConfig {
  const parsed = configSchema.safeParse(source.value ?? {});
  if (!parsed.success) throw schemaError(parsed.error.issues, source);
  const config = parsed.data;
  const wrong = crossCheck(config, source, again);
  if (config.output === null && output === undefined) {
    wrong.push(`${source.locate(['output'])}: output: found nothing, expected a folder for the run; or give --output`);
  }
  if (wrong.length > 0) throw configError(wrong);

  const path = (given: string) => resolve(base, given.replace(/^~(?=[\\/]|$)/, homedir()));
  const pathList = (given: string | string[]) => (Array.isArray(given) ? given : [given]).map(path);
  const { data, loss, train } = config;
  const em = resolveEm(config, path);
  const passes = em && config.model !== 'features' ? em.rounds * em.m_epochs : 1;
  return {
    ...config,
    model: resolveModel(config.model, path),
    data: {
      ...data,
      train: pathList(data.train),
      eval: data.eval === null ? null : pathList(data.eval),
      items: data.items === null ? null : path(data.items),
    },
    adapter: resolveAdapter(config.adapter, config.method, path),
    loss: {
      ...loss,
      type: lossTerms(loss.type, config.method),
      reference: ['base', 'init_from'].includes(loss.reference) ? loss.reference : path(loss.reference),
      modpo: loss.modpo && {
        ...loss.modpo,
        rewards: loss.modpo.rewards.map((reward) => ({ ...reward, adapter: path(reward.adapter) })),
      },
    },
    train: {
      ...train,
      epochs: train.epochs ?? (train.steps === null ? passes : null),
      early_stopping: train.early_stopping && {
        ...train.early_stopping,
        mode: train.early_stopping.mode ?? (train.early_stopping.metric.endsWith('loss') ? 'min' : 'max'),
      },
    },
    reward: config.reward ?? (config.method === 'reward' ? { head_std: null } : null),
    features: resolveFeatures(config),
    em,
    ...resolveRollouts(config, path),
    soups: resolveSoups(config.soups, path),
    pretrain: config.pretrain && { ...config.pretrain, tokenizer: path(config.pretrain.tokenizer) },
    output: output === undefined ? path(config.output as string) : resolve(output),
  };
}

/**
 * Reads a YAML configuration, lays `sets` (`key.path=value`, the value as YAML) over it, checks it whole and fills in every
 * default. Relative paths, also those in `sets`, count from the file's folder; `output` (the command line's) counts from the
 * working folder.
 *
 * @throws NOT_FOUND without the file; BAD_CONFIG naming file, line, key, what was found and what was expected. All
 * problems are reported at once.
 */
export function loadConfig(
  path: string,
  sets: readonly string[] = [],
  options: { output?: string } = {},
): ResolvedConfig {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw ioError('read', path, error);
    throw new PluralignError('NOT_FOUND', `${path}: no such file; expected a YAML configuration`, { cause: error });
  }
  return resolveSource(
    applySets(parseYaml(text, path), sets),
    dirname(resolve(path)),
    options.output,
    isRunConfig(text),
  );
}

/** Checks and completes a configuration given as a value. Relative paths count from `base`, by default the working folder. */
export function resolveConfig(
  config: Config,
  options: { base?: string; output?: string; sets?: readonly string[] } = {},
): ResolvedConfig {
  const source = applySets({ value: config, locate: () => 'configuration' }, options.sets ?? []);
  return resolveSource(source, resolve(options.base ?? '.'), options.output);
}

/** For RUN/config.yaml; `loadConfig` reads it back to the same configuration. */
export function configToYaml(config: ResolvedConfig): string {
  return header + stringify(config, { lineWidth: 0, aliasDuplicateObjects: false });
}

/** Whether a config.yaml was written by a run rather than by a person. */
export function isRunConfig(text: string): boolean {
  return text.startsWith(header);
}

/** The run's own copy of its configuration. */
export function runConfigPath(run: string): string {
  return join(run, 'config.yaml');
}
