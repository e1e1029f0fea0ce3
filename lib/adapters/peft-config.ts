import { PluralignError } from '../native/errors.js';
import type { AdapterConfig } from './config.js';
import { adapterConfig, headNames, linearNames } from './config.js';

export type TaskType = 'CAUSAL_LM' | 'SEQ_CLS';

/** What an `adapter_config.json` says. */
export interface PeftConfig {
  config: AdapterConfig;
  taskType: TaskType | null;
  /** Name or folder of the base model, as the file gives it. */
  baseModel: string | null;
  revision: string | null;
}

type Json = Record<string, unknown>;

/** Keys of PEFT's LoraConfig that change what an adapter computes or how it trains, and what they would need. */
const unsupported: Record<string, string> = {
  use_dora: 'DoRA rescales the columns of the base weight',
  use_qalora: 'QA-LoRA pools the inputs',
  use_bdlora: 'BD-LoRA has block-diagonal factors',
  lora_bias: 'biases on B are not read',
  alora_invocation_tokens: 'activated LoRA acts on some tokens only',
  layer_replication: 'it repeats layers of the base',
  trainable_token_indices: 'it trains rows of the embedding',
  target_parameters: 'it adapts bare parameters',
  megatron_config: 'it splits layers over devices',
  arrow_config: 'Arrow routes tokens between adapters',
  kasa_config: 'KaSA truncates the base weight',
  velora_config: 'VeLoRA changes the backward pass',
  monteclora_config: 'MonteCLoRA samples weights',
  modules_to_tie: 'it ties trained modules',
};

/** Keys that say where an adapter came from, or settings that act only with a key refused elsewhere. */
const harmless = new Set([
  'auto_mapping',
  'corda_config',
  'enable_lora',
  'ensure_weight_tying',
  'eva_config',
  'inference_mode',
  'loftq_config',
  'lora_ga_config',
  'megatron_core',
  'merge_weights',
  'peft_version',
  'qalora_group_size',
  'runtime_config',
]);

/** Ways to initialise that leave the base weights and the training of A and B alone. */
const plainInits: unknown[] = [undefined, null, true, false, 'gaussian', 'orthogonal', 'eva'];

const isOff = (value: unknown) =>
  value === null ||
  value === undefined ||
  value === false ||
  (typeof value === 'object' && Object.keys(value as object).length === 0);

/**
 * Reads the text of an `adapter_config.json`. `file` names it in errors.
 * Throws `BAD_FILE` where it is no JSON object, `BAD_CONFIG` where a value is malformed, `UNSUPPORTED` naming a key and
 * its value where it changes the mathematics and is not implemented.
 */
export function parsePeftConfig(text: string, file: string): PeftConfig {
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch (error) {
    throw new PluralignError('BAD_FILE', `${file}: not JSON (${(error as Error).message})`, { cause: error });
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw new PluralignError(
      'BAD_FILE',
      `${file}: found ${Array.isArray(parsed) ? 'a list' : String(parsed)}, expected an object`,
    );
  }
  const raw = parsed as Json;
  const refuse = (key: string, why: string): never => {
    throw new PluralignError('UNSUPPORTED', `${file}: ${key} = ${brief(raw[key])} is not supported: ${why}`);
  };

  if (raw.peft_type !== 'LORA') refuse('peft_type', 'expected "LORA"');
  const handled = new Set([
    ...Object.keys(fields),
    ...harmless,
    'peft_type',
    'task_type',
    'base_model_name_or_path',
    'revision',
  ]);
  for (const [key, value] of Object.entries(raw)) {
    if (Object.hasOwn(unsupported, key) && !isOff(value)) refuse(key, unsupported[key]);
    if (!handled.has(key) && !ownRules.has(key) && !isOff(value)) {
      refuse(key, 'this key is unknown and may change what the adapter computes; remove it if it does not');
    }
  }
  if (raw.bias !== undefined && raw.bias !== null && raw.bias !== 'none') refuse('bias', 'only "none" is');
  if (!isOff(raw.fan_in_fan_out)) refuse('fan_in_fan_out', 'weights are stored as [out, in]');
  if (!plainInits.includes(raw.init_lora_weights)) {
    refuse(
      'init_lora_weights',
      'it changes the base weights or freezes a factor; convert the adapter to plain LoRA in PEFT first',
    );
  }
  if (typeof raw.target_modules === 'string' && !isOff(raw.layers_to_transform)) {
    refuse('layers_to_transform', 'PEFT takes it only with a list of target_modules');
  }

  const task = raw.task_type ?? null;
  if (task !== null && task !== 'CAUSAL_LM' && task !== 'SEQ_CLS')
    refuse('task_type', 'expected "CAUSAL_LM" or "SEQ_CLS"');
  const given: Json = { r: 8, alpha: 8 };
  for (const [key, field] of Object.entries(fields)) if (!isAbsent(raw[key])) given[field] = raw[key];
  if (typeof given.layersPattern === 'string')
    given.layersPattern = given.layersPattern === '' ? [] : [given.layersPattern];
  if (isAbsent(raw.target_modules)) {
    throw new PluralignError(
      'BAD_CONFIG',
      `${file}: target_modules is missing; expected a list of module names or a regular expression`,
    );
  }
  return {
    config: adapterConfig(given as Partial<AdapterConfig>, file),
    taskType: task as TaskType | null,
    baseModel: typeof raw.base_model_name_or_path === 'string' ? raw.base_model_name_or_path : null,
    revision: typeof raw.revision === 'string' ? raw.revision : null,
  };
}

const isAbsent = (value: unknown) => value === undefined || value === null;

/** PEFT's key for each field of `AdapterConfig`. */
const fields: Record<string, keyof AdapterConfig> = {
  r: 'r',
  lora_alpha: 'alpha',
  lora_dropout: 'dropout',
  target_modules: 'targets',
  rank_pattern: 'rankPattern',
  alpha_pattern: 'alphaPattern',
  use_rslora: 'rslora',
  modules_to_save: 'modulesToSave',
  layers_to_transform: 'layersToTransform',
  layers_pattern: 'layersPattern',
  exclude_modules: 'excludeModules',
};

const ownRules = new Set(['bias', 'fan_in_fan_out', 'init_lora_weights']);

function brief(value: unknown): string {
  const text = JSON.stringify(value) ?? 'nothing';
  return text.length > 80 ? `${text.slice(0, 77)}…` : text;
}

/**
 * The `adapter_config.json` of an adapter as PEFT 0.21 writes it: every key, sorted, with its defaults.
 * `all-linear` becomes the list of names; a reward head is saved as a sequence classifier's.
 */
export function peftConfigText(adapter: PeftConfig): string {
  const { config, taskType, baseModel, revision } = adapter;
  const { targets, excludeModules } = config;
  const everyLinear = typeof targets === 'string' && targets.toLowerCase() === 'all-linear';
  const json: Json = {
    alora_invocation_tokens: null,
    alpha_pattern: config.alphaPattern,
    arrow_config: null,
    auto_mapping: null,
    base_model_name_or_path: baseModel,
    bias: 'none',
    corda_config: null,
    ensure_weight_tying: false,
    eva_config: null,
    exclude_modules: excludeModules.length > 0 ? excludeModules : null,
    fan_in_fan_out: false,
    inference_mode: true,
    init_lora_weights: true,
    kasa_config: null,
    layer_replication: null,
    layers_pattern: config.layersPattern.length > 0 ? config.layersPattern : null,
    layers_to_transform: config.layersToTransform,
    loftq_config: {},
    lora_alpha: config.alpha,
    lora_bias: false,
    lora_dropout: config.dropout,
    lora_ga_config: null,
    megatron_config: null,
    megatron_core: 'megatron.core',
    modules_to_save: taskType === 'SEQ_CLS' ? headNames : null,
    monteclora_config: null,
    peft_type: 'LORA',
    peft_version: '0.21.0',
    qalora_group_size: 16,
    r: config.r,
    rank_pattern: config.rankPattern,
    revision,
    target_modules: everyLinear ? linearNames : targets,
    target_parameters: null,
    task_type: taskType,
    trainable_token_indices: null,
    use_bdlora: null,
    use_dora: false,
    use_qalora: false,
    use_rslora: config.rslora,
    velora_config: null,
  };
  return `${JSON.stringify(json, null, 2)}\n`;
}
