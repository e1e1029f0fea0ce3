import { join } from 'node:path';
import type { NativeModelConfig } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import { Fields } from './fields.js';
import { isObject, type Json, readJsonIfThere } from './folder.js';
import { inverseFrequencies, type Rope, readRope } from './rope.js';

export type ModelFamily = 'llama' | 'mistral' | 'qwen2' | 'qwen3';

/** What config.json (with generation_config.json) says of a model, defaults filled in as transformers fills them. */
export interface ModelConfig {
  /** As config.json has it: `LlamaForCausalLM`, `Qwen2ForSequenceClassification` … */
  architecture: string;
  family: ModelFamily;
  /** `reward`: a `…ForSequenceClassification` model with one label. */
  head: 'causal' | 'reward';
  vocabSize: number;
  hiddenSize: number;
  intermediateSize: number;
  layers: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  normEps: number;
  rope: Rope;
  /** Positions the model was made for. */
  maxPositions: number;
  /** Keys at this distance or more are not seen; 0: no window. */
  slidingWindow: number;
  tied: boolean;
  bosId: number | null;
  /** Ids that end a text, from generation_config.json, else config.json; empty where neither says. */
  eosIds: number[];
  /** What the weights are stored as, where config.json says so. */
  dtype: 'float32' | 'bfloat16' | 'float16' | null;
  /** config.json as read, to be written again with a saved model. */
  json: Json;
}

interface Family {
  family: ModelFamily;
  kvHeads?: number;
  headDim?: number;
  maxPositions: number;
}

/** Defaults that transformers 5 uses where a key is absent. */
const families: Record<string, Family> = {
  Llama: { family: 'llama', maxPositions: 2048 },
  Mistral: { family: 'mistral', kvHeads: 8, maxPositions: 131072 },
  Qwen2: { family: 'qwen2', kvHeads: 32, maxPositions: 32768 },
  Qwen3: { family: 'qwen3', kvHeads: 32, headDim: 128, maxPositions: 32768 },
};

/** Architectures that run here. */
export const supportedArchitectures: readonly string[] = Object.keys(families).flatMap((name) => [
  `${name}ForCausalLM`,
  `${name}ForSequenceClassification`,
]);

/**
 * Reads and checks a model folder's config.json. Throws `NOT_FOUND` where the folder has none, `BAD_FILE` naming a key that
 * makes no sense, `UNSUPPORTED` naming an architecture or feature that would change the mathematics and is not implemented.
 */
export function readModelConfig(dir: string): ModelConfig {
  const path = join(dir, 'config.json');
  const json = readJsonIfThere(path);
  if (!json) {
    const adapter = readJsonIfThere(join(dir, 'adapter_config.json'));
    throw new PluralignError(
      'NOT_FOUND',
      adapter
        ? `${path}: not there; the folder holds an adapter. Give the base model's folder as the model and this as an adapter`
        : `${path}: not there; expected a Hugging Face model folder (config.json, tokenizer.json, model.safetensors)`,
    );
  }
  return parseModelConfig(json, path, readJsonIfThere(join(dir, 'generation_config.json')));
}

/** `readModelConfig` for JSON at hand; `where` is named in errors. */
export function parseModelConfig(json: Json, where: string, generation: Json | null = null): ModelConfig {
  const { architecture, name, head } = readArchitecture(json, where);
  const defaults = families[name];
  const fields = new Fields(json, where);
  if (isObject(json.quantization_config)) {
    const method = json.quantization_config.quant_method ?? 'unknown';
    fields.refuse(
      'quantization_config',
      `quantised weights (${String(method)}) are not read; use the unquantised model`,
    );
  }
  const activation = json.hidden_act ?? 'silu';
  if (activation !== 'silu') fields.refuse('hidden_act', `${String(activation)} is not implemented; expected silu`);

  const hiddenSize = fields.size('hidden_size');
  const layers = fields.size('num_hidden_layers');
  const heads = fields.size('num_attention_heads');
  const kvHeads =
    json.num_key_value_heads === undefined
      ? (defaults.kvHeads ?? heads)
      : (fields.optionalSize('num_key_value_heads') ?? heads);
  if (heads % kvHeads !== 0) {
    fields.bad('num_key_value_heads', `${kvHeads} does not divide num_attention_heads (${heads})`);
  }
  const headDim = readHeadDim(fields, defaults, hiddenSize, heads);
  const maxPositions = fields.optionalSize('max_position_embeddings') ?? defaults.maxPositions;
  const vocabSize = fields.size('vocab_size');
  if (head === 'reward') requireOneLabel(fields);
  return {
    architecture,
    family: defaults.family,
    head,
    vocabSize,
    hiddenSize,
    intermediateSize: fields.size('intermediate_size'),
    layers,
    heads,
    kvHeads,
    headDim,
    normEps: fields.positive('rms_norm_eps', 1e-6),
    rope: readRope(fields, maxPositions),
    maxPositions,
    slidingWindow: readSlidingWindow(fields, defaults.family, layers),
    tied: fields.flag('tie_word_embeddings', false),
    bosId: fields.ids('bos_token_id')[0] ?? null,
    eosIds: readEosIds(fields, generation, where),
    dtype: readDtype(json),
    json,
  };
}

function readArchitecture(
  json: Json,
  where: string,
): { architecture: string; name: string; head: 'causal' | 'reward' } {
  const listed = Array.isArray(json.architectures) ? json.architectures[0] : undefined;
  const byType = Object.keys(families).find((name) => families[name].family === json.model_type);
  // Old files may have no architectures; the model type then says which causal model it is.
  const architecture = listed ?? (byType && json.architectures == null ? `${byType}ForCausalLM` : undefined);
  const match = typeof architecture === 'string' && /^(.+)For(CausalLM|SequenceClassification)$/.exec(architecture);
  if (!match || !Object.hasOwn(families, match[1])) {
    const found =
      architecture ?? (json.model_type === undefined ? 'none named' : `model_type ${String(json.model_type)}`);
    throw new PluralignError(
      'UNSUPPORTED',
      `${where}: architectures: ${String(found)} is not supported; supported are ${supportedArchitectures.join(', ')}`,
    );
  }
  return { architecture: match[0], name: match[1], head: match[2] === 'CausalLM' ? 'causal' : 'reward' };
}

function readHeadDim(fields: Fields, defaults: Family, hiddenSize: number, heads: number): number {
  const given = fields.optionalSize('head_dim') ?? defaults.headDim;
  if (given === undefined && hiddenSize % heads !== 0) {
    fields.bad(
      'hidden_size',
      `${hiddenSize} is not a multiple of num_attention_heads (${heads}), and there is no head_dim`,
    );
  }
  const headDim = given ?? hiddenSize / heads;
  if (headDim % 2 !== 0) fields.bad('head_dim', `${headDim} is odd; rotary positions need pairs`);
  if (headDim * heads >= 2 ** 31) fields.bad('head_dim', `${headDim} × ${heads} heads is too large`);
  return headDim;
}

/** 0 where all layers see everything; layers that differ are refused, for the native model has one window. */
function readSlidingWindow(fields: Fields, family: ModelFamily, layers: number): number {
  const { json } = fields;
  if (family === 'llama') return 0;
  let window = json.sliding_window === undefined ? 4096 : (fields.optionalSize('sliding_window') ?? 0);
  if (family !== 'mistral' && !fields.flag('use_sliding_window', false)) window = 0;
  let sliding: boolean[];
  if (json.layer_types != null) {
    sliding = readLayerTypes(fields, layers);
  } else if (family === 'mistral') {
    return window;
  } else {
    const from = fields.count('max_window_layers', 28);
    sliding = Array.from({ length: layers }, (_, i) => window > 0 && i >= from);
  }
  const some = sliding.filter(Boolean).length;
  const key = json.layer_types != null ? 'layer_types' : 'max_window_layers';
  if (some > 0 && some < layers) {
    fields.refuse(key, `${some} of ${layers} layers with a sliding window; all layers or none are implemented`);
  }
  if (some > 0 && window === 0) fields.bad(key, 'sliding layers, but no sliding_window is in use');
  if (some === 0 && window > 0 && family === 'mistral') {
    fields.refuse(key, `only full attention, but sliding_window is ${window}: set sliding_window to null`);
  }
  return some > 0 ? window : 0;
}

function readLayerTypes(fields: Fields, layers: number): boolean[] {
  const types = fields.json.layer_types;
  if (!Array.isArray(types) || types.length !== layers) {
    return fields.bad('layer_types', `expected a list of ${layers} names, one for each layer`);
  }
  return types.map((type, i) => {
    if (type !== 'full_attention' && type !== 'sliding_attention') {
      fields.refuse(
        `layer_types[${i}]`,
        `${String(type)} is not implemented; supported are full_attention, sliding_attention`,
      );
    }
    return type === 'sliding_attention';
  });
}

function requireOneLabel(fields: Fields): void {
  const { json } = fields;
  const labels = isObject(json.id2label) ? Object.keys(json.id2label).length : (json.num_labels ?? 2);
  if (labels !== 1) fields.refuse('num_labels', `a reward model has one label, this one ${String(labels)}`);
}

function readEosIds(fields: Fields, generation: Json | null, where: string): number[] {
  if (generation?.eos_token_id != null) {
    return new Fields(generation, where.replace(/config\.json$/, 'generation_config.json')).ids('eos_token_id');
  }
  return fields.ids('eos_token_id');
}

function readDtype(json: Json): ModelConfig['dtype'] {
  const name = String(json.dtype ?? json.torch_dtype ?? '').replace(/^torch\./, '');
  return name === 'float32' || name === 'bfloat16' || name === 'float16' ? name : null;
}

/** The native addon's view of a configuration. */
export function nativeConfig(config: ModelConfig): NativeModelConfig {
  return {
    vocabSize: config.vocabSize,
    hiddenSize: config.hiddenSize,
    intermediateSize: config.intermediateSize,
    layers: config.layers,
    heads: config.heads,
    kvHeads: config.kvHeads,
    headDim: config.headDim,
    normEps: config.normEps,
    ropeInverseFrequencies: inverseFrequencies(config.rope, config.headDim),
    ropeAttentionFactor: 1,
    slidingWindow: config.slidingWindow,
    qkNorm: config.family === 'qwen3',
    // A sequence classifier's file has no lm_head; its embedding stands in so that nothing more has to be loaded.
    tied: config.tied || config.head === 'reward',
  };
}

export { weightFiles } from './folder.js';
export { type NewModelOptions, newConfig } from './new-config.js';
