import type { NativeModelConfig } from '../native/addon.js';
import { PluralignError } from '../native/errors.js';
import { fullMatches, keyMatches, prefixMatches } from './pattern.js';

/**
 * What several adapters have in common. `none`: each its own A and B; `a`: one A, a B each; `b`: one B, an A each;
 * `core`: one A and B, an r × r core each; `vector`: one A and B, an r-vector each.
 */
export type Sharing = 'none' | 'a' | 'b' | 'core' | 'vector';

/** LoRA in PEFT's terms: ΔW = scale · B A with A [r, in] and B [out, r]. */
export interface AdapterConfig {
  r: number;
  alpha: number;
  /** Probability that an input of A is dropped in training, in [0, 1). */
  dropout: number;
  /** `all-linear`; a list of module names or their ends; any other string: a Python regular expression for whole names. */
  targets: string | string[];
  /** Other ranks and alphas for the modules that a key (a name's end, or a regular expression of one) matches. */
  rankPattern: Record<string, number>;
  alphaPattern: Record<string, number>;
  /** Scale by α/√r in place of α/r (rsLoRA, arXiv 2312.03732). */
  rslora: boolean;
  share: Sharing;
  /** Modules that are trained whole and saved with the adapter; only a reward model's `score` can be. */
  modulesToSave: string[];
  /** Layers to adapt; null: all. */
  layersToTransform: number | number[] | null;
  /** Names of the module list that `layersToTransform` counts in; empty: any. */
  layersPattern: string[];
  /** Modules left out: names or ends, or a regular expression for whole names. */
  excludeModules: string | string[];
}

/** One linear layer of the model that an adapter acts on. */
export interface Target {
  layer: number;
  /** 0 q, 1 k, 2 v, 3 o, 4 gate, 5 up, 6 down. */
  target: number;
  /** As in the Hugging Face model: `model.layers.0.self_attn.q_proj`. */
  name: string;
  in: number;
  out: number;
  r: number;
  /** α/r, or α/√r with rsLoRA. */
  scale: number;
}

export const sharings: readonly Sharing[] = ['none', 'a', 'b', 'core', 'vector'];

/** Last parts of the names of the linear layers that an adapter can act on, in the order of `Target.target`. */
export const linearNames: readonly string[] = [
  'q_proj',
  'k_proj',
  'v_proj',
  'o_proj',
  'gate_proj',
  'up_proj',
  'down_proj',
];

/** Names of the head of a sequence classifier; PEFT lists both for a model that has either. */
export const headNames: readonly string[] = ['classifier', 'score'];

const defaults: AdapterConfig = {
  r: 16,
  alpha: 32,
  dropout: 0,
  targets: 'all-linear',
  rankPattern: {},
  alphaPattern: {},
  rslora: false,
  share: 'none',
  modulesToSave: [],
  layersToTransform: null,
  layersPattern: [],
  excludeModules: [],
};

/**
 * A complete configuration from a partial one, with every value checked.
 * Throws `BAD_CONFIG` naming the field, what was found and what was expected; `UNSUPPORTED` for a module to save that is
 * no reward head.
 */
export function adapterConfig(given: Partial<AdapterConfig> = {}, where = 'adapter'): AdapterConfig {
  const defined = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const config: AdapterConfig = { ...defaults, ...defined };
  const fail = (field: string, found: unknown, expected: string): never => {
    throw new PluralignError('BAD_CONFIG', `${where}.${field}: found ${JSON.stringify(found)}, expected ${expected}`);
  };
  for (const key of Object.keys(config)) if (!(key in defaults)) fail(key, config[key as 'r'], 'no such field');

  const isRank = (value: unknown) => Number.isSafeInteger(value) && (value as number) > 0;
  const isStrings = (value: unknown) => Array.isArray(value) && value.every((v) => typeof v === 'string' && v !== '');
  const isNamed = (value: unknown) => isStrings(value) || typeof value === 'string';
  const isLayer = (value: unknown) => Number.isSafeInteger(value) && (value as number) >= 0;
  if (!isRank(config.r)) fail('r', config.r, 'a positive whole number');
  if (!Number.isFinite(config.alpha)) fail('alpha', config.alpha, 'a number');
  if (!(config.dropout >= 0 && config.dropout < 1)) fail('dropout', config.dropout, 'a number in [0, 1)');
  if (!isNamed(config.targets) || config.targets.length === 0) {
    fail('targets', config.targets, 'all-linear, a list of module names or a regular expression');
  }
  for (const field of ['rankPattern', 'alphaPattern'] as const) {
    const pattern: unknown = config[field];
    if (typeof pattern !== 'object' || pattern === null || Array.isArray(pattern)) {
      fail(field, pattern, 'a mapping from module names to numbers');
    }
    for (const [key, value] of Object.entries(pattern as object)) {
      const good = field === 'rankPattern' ? isRank(value) : Number.isFinite(value);
      if (!good)
        fail(
          `${field}[${JSON.stringify(key)}]`,
          value,
          field === 'rankPattern' ? 'a positive whole number' : 'a number',
        );
    }
  }
  if (typeof config.rslora !== 'boolean') fail('rslora', config.rslora, 'true or false');
  if (!sharings.includes(config.share)) fail('share', config.share, `one of ${sharings.join(', ')}`);
  if (!isStrings(config.modulesToSave)) fail('modulesToSave', config.modulesToSave, 'a list of module names');
  const layers = config.layersToTransform;
  if (layers !== null && !isLayer(layers) && !(Array.isArray(layers) && layers.every(isLayer))) {
    fail('layersToTransform', layers, 'a layer number or a list of them');
  }
  if (!isStrings(config.layersPattern)) fail('layersPattern', config.layersPattern, 'a list of names');
  if (!isNamed(config.excludeModules))
    fail('excludeModules', config.excludeModules, 'a list of module names or a regular expression');

  const unsupported = config.modulesToSave.find((name) => !headNames.includes(name));
  if (unsupported !== undefined) {
    throw new PluralignError(
      'UNSUPPORTED',
      `${where}.modulesToSave: ${JSON.stringify(unsupported)} cannot be trained beside an adapter; only the reward head ` +
        `("score") can. Use adapter: full to train whole weights.`,
    );
  }
  return config;
}

/** Every linear layer of the model's decoder, by layer, then in the order q, k, v, o, gate, up, down. */
export function linears(model: NativeModelConfig): Omit<Target, 'r' | 'scale'>[] {
  const { hiddenSize, intermediateSize } = model;
  const queries = model.heads * model.headDim;
  const keys = model.kvHeads * model.headDim;
  const shapes = [
    [hiddenSize, queries],
    [hiddenSize, keys],
    [hiddenSize, keys],
    [queries, hiddenSize],
    [hiddenSize, intermediateSize],
    [hiddenSize, intermediateSize],
    [intermediateSize, hiddenSize],
  ];
  return Array.from({ length: model.layers }, (_, layer) =>
    linearNames.map((linear, target) => ({
      layer,
      target,
      name: `model.layers.${layer}.${target < 4 ? 'self_attn' : 'mlp'}.${linear}`,
      in: shapes[target][0],
      out: shapes[target][1],
    })),
  ).flat();
}

/** The model's other modules, which a target may name by mistake or in an adapter that cannot be loaded. */
function otherModules(model: NativeModelConfig): string[] {
  const norms = [
    'input_layernorm',
    'post_attention_layernorm',
    ...(model.qkNorm ? ['self_attn.q_norm', 'self_attn.k_norm'] : []),
  ];
  const inLayer = ['self_attn', 'mlp', 'mlp.act_fn', ...norms];
  const layers = Array.from({ length: model.layers }, (_, i) => [
    `model.layers.${i}`,
    ...inLayer.map((m) => `model.layers.${i}.${m}`),
  ]);
  return [
    'model',
    'model.embed_tokens',
    'model.layers',
    ...layers.flat(),
    'model.norm',
    'model.rotary_emb',
    'lm_head',
    'score',
  ];
}

const endsAs = (name: string, entry: string) => name === entry || name.endsWith(`.${entry}`);

/** For each name whether a list of names and ends, or a regular expression for whole names, matches it. */
function named(wanted: string | string[], names: string[], where: string): boolean[] {
  if (typeof wanted === 'string') return wanted === '' ? names.map(() => false) : fullMatches(wanted, names, where);
  return names.map((name) => wanted.some((entry) => endsAs(name, entry)));
}

function inLayers(config: AdapterConfig, all: { name: string; layer: number }[], where: string): boolean[] {
  const layers = config.layersToTransform;
  if (layers === null || (Array.isArray(layers) && layers.length === 0)) return all.map(() => true);
  const wanted = new Set(Array.isArray(layers) ? layers : [layers]);
  const names = all.map((linear) => linear.name);
  const counted = config.layersPattern.map((p) => prefixMatches(`(?:^|.*?\\.)${p}\\.(?P<idx>\\d+)\\.`, names, where));
  return all.map(
    ({ layer }, i) => wanted.has(layer) && (counted.length === 0 || counted.some((matches) => matches[i])),
  );
}

/** The value of the first key, in the order given, that matches a module's name (PEFT's `get_pattern_key`). */
export function byPattern(
  pattern: Record<string, number>,
  names: string[],
  otherwise: number,
  where: string,
): number[] {
  const entries = Object.entries(pattern).map(([key, value]) => ({ value, matches: keyMatches(key, names, where) }));
  return names.map((_, i) => entries.find((entry) => entry.matches[i])?.value ?? otherwise);
}

/**
 * The linear layers that an adapter acts on, by PEFT 0.21's rules: an entry of a list matches a module's whole name or an
 * end of it after a dot; a string is matched against the whole name; rank and alpha patterns match an end of the name.
 *
 * Throws `BAD_CONFIG` where a target matches nothing (`everyTarget: false`, as PEFT itself reads files: where all match
 * nothing) or a rank exceeds the model's width, `UNSUPPORTED` where a target is a module without a LoRA path here.
 */
export function targetsOf(
  config: AdapterConfig,
  model: NativeModelConfig,
  options: { where?: string; everyTarget?: boolean } = {},
): Target[] {
  const where = options.where ?? 'adapter';
  const all = linears(model);
  const names = all.map((linear) => linear.name);
  const available = `${linearNames.join(', ')}; whole names run from ${names[0]} to ${names.at(-1)}`;
  const everyLinear = typeof config.targets === 'string' && config.targets.toLowerCase() === 'all-linear';
  const wanted = everyLinear ? [...linearNames] : config.targets;

  const others = otherModules(model);
  const excludedOthers = named(config.excludeModules, others, `${where}.excludeModules`);
  const other = others[named(wanted, others, `${where}.targets`).findIndex((match, i) => match && !excludedOthers[i])];
  const headSaved = other === 'score' && config.modulesToSave.length > 0;
  if (other !== undefined && !headSaved) {
    throw new PluralignError(
      'UNSUPPORTED',
      `${where}.targets: ${other} cannot have an adapter here; available: ${available}`,
    );
  }
  if (Array.isArray(wanted) && (options.everyTarget ?? true)) {
    const idle = wanted.find((entry) => !names.some((name) => endsAs(name, entry)));
    if (idle !== undefined) {
      throw new PluralignError(
        'BAD_CONFIG',
        `${where}.targets: ${JSON.stringify(idle)} matches no module; available: ${available}`,
      );
    }
  }

  const matches = named(wanted, names, `${where}.targets`);
  const excluded = named(config.excludeModules, names, `${where}.excludeModules`);
  const counted = inLayers(config, all, `${where}.layersPattern`);
  // PEFT asks for the layer only where a list's entry is an end of the name, not where it is the whole name.
  const whole = new Set(Array.isArray(wanted) ? wanted : []);
  const chosen = all.filter(({ name }, i) => matches[i] && !excluded[i] && (whole.has(name) || counted[i]));
  if (chosen.length === 0) {
    throw new PluralignError(
      'BAD_CONFIG',
      `${where}.targets: ${JSON.stringify(config.targets)} matches no module of this model (${model.layers} layers)` +
        `${typeof config.targets === 'string' ? ': a text is a regular expression for whole names, a list has their ends' : ''}; ` +
        `available: ${available}`,
    );
  }

  const chosenNames = chosen.map((linear) => linear.name);
  for (const field of ['rankPattern', 'alphaPattern'] as const) {
    const place = `${where}.${field}`;
    const idle = Object.keys(config[field]).find((key) => !keyMatches(key, names, place).includes(true));
    if (idle !== undefined && (options.everyTarget ?? true))
      throw new PluralignError(
        'BAD_CONFIG',
        `${place}: ${JSON.stringify(idle)} matches no module; available: ${available}`,
      );
  }
  const ranks = byPattern(config.rankPattern, chosenNames, config.r, `${where}.rankPattern`);
  const alphas = byPattern(config.alphaPattern, chosenNames, config.alpha, `${where}.alphaPattern`);
  const widest = Math.max(model.hiddenSize, model.intermediateSize);
  return chosen.map((linear, i) => {
    if (ranks[i] > widest) {
      throw new PluralignError(
        'BAD_CONFIG',
        `${where}: rank ${ranks[i]} of ${linear.name} is larger than the model's width ${widest}; lower r`,
      );
    }
    return { ...linear, r: ranks[i], scale: alphas[i] / (config.rslora ? Math.sqrt(ranks[i]) : ranks[i]) };
  });
}
