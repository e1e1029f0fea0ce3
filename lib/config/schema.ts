import { z } from 'zod';
import { type DeviceName, isDeviceName } from '../native/device.js';
import type { Input } from './input.js';
import {
  choice,
  flag,
  notNegative,
  part,
  paths,
  patternOf,
  positive,
  section,
  share,
  text,
  wholeFrom,
} from './leaves.js';
import { type LossType, lossSchema } from './loss-schema.js';
import {
  grpoSchema,
  ppoSchema,
  type ResolvedRewardTerm,
  reinforceSchema,
  rewardTermSchema,
  rlooSchema,
  rolloutSchema,
} from './rollout-schema.js';
import { type ResolvedSoups, soupsSchema } from './soups-schema.js';

export { type LossType, lossSchema, lossTypes } from './loss-schema.js';

/** Models of rewards on features, one file each in lib/features/models. */
export const featureModels = ['global', 'local', 'low-rank', 'mixed', 'lore', 'pal', 'heads'] as const;
export type FeatureModelName = (typeof featureModels)[number];

/** Methods that `train` knows. */
export const methods = [
  'pretrain',
  'sft',
  'dpo',
  'reward',
  'em-dpo',
  'em-reward',
  'rloo',
  'grpo',
  'reinforce++',
  'ppo',
  'soups',
] as const;
export type Method = (typeof methods)[number];

const splitSchema = section({
  /** What stays together: all votes of an annotator, all rows of a prompt, or single rows. */
  by: choice(['annotator', 'row', 'prompt']).default('row'),
  /** Share that is held out. */
  eval: part().default(0.1),
  seed: wholeFrom(0).default(0),
});

const dataSchema = section({
  /** .jsonl .json .csv .parquet */
  train: paths(),
  eval: paths().nullable().default(null),
  /** With `model: features`: the table of items that rows name; .jsonl .parquet .safetensors */
  items: text('a path').nullable().default(null),
  /** Instead of `eval`: hold out a part of the training rows. */
  split: splitSchema.nullable().default(null),
  /** Tokens of prompt and completion; null: what the model takes. */
  max_length: wholeFrom(2).nullable().default(1024),
  /** `drop` counts and reports the rows; `keep_start` cuts their end off; `error` refuses them. */
  over_length: choice(['drop', 'keep_start', 'error']).default('drop'),
  /** Leave out rows that are exactly equal to an earlier one (annotator included). */
  dedupe: flag().default(false),
  /** `skip` counts and reports the rows. */
  on_bad_row: choice(['error', 'skip']).default('error'),
});

export const adapterSchema = section({
  /** r, alpha, targets and dropout: null takes those of `init_from`, else 16, 32, all-linear and 0. */
  r: wholeFrom(1).nullable().default(null),
  alpha: positive().nullable().default(null),
  /** all-linear, a list of module names, or a regular expression for whole names. */
  targets: z
    .union([text('text'), z.array(text('a name')).min(1, { error: 'at least one module name' })], {
      error: 'all-linear, a list of module names or a regular expression',
    })
    .nullable()
    .default(null),
  dropout: share().nullable().default(null),
  /** Folder of a PEFT adapter to start from. */
  init_from: text('a path').nullable().default(null),
  /** What several adapters have in common: nothing, A, B, or both (each then has a core r × r, or an r-vector). */
  share: choice(['none', 'a', 'b', 'core', 'vector']).default('none'),
  /**
   * Whose they are (dpo, reward): one adapter for all, or one for each annotator and a generic one for rows without a
   * name. Null: annotator where `share` says what they have in common, else all.
   */
  per: choice(['all', 'annotator']).nullable().default(null),
  /**
   * How annotators' adapters start: all alike (SI of P-ShareLoRA), or as copies of one that was first trained on every
   * row, for a while (WU) or as a run of its own (G: its schedule ends, the optimizer starts anew).
   */
  init: choice(['shared', 'warm-up', 'global']).default('shared'),
  /** Share of the steps that train that one adapter; null: 0.2 for warm-up, 0.4 for global. */
  init_share: part().nullable().default(null),
  /** Probability that a row is trained under the generic adapter in place of its annotator's, drawn at every step. */
  generic: share().default(0.1),
  /** λ of λ/2 ‖own − generic‖² for each annotator, beside the sum of the rows' losses. */
  penalty: notNegative().default(0),
  /** r of modules whose names match, as in PEFT: `{ q_proj: 8 }`. */
  rank_pattern: patternOf(wholeFrom(1)).default({}),
  /** alpha of modules whose names match. */
  alpha_pattern: patternOf(positive()).default({}),
  /** Scale by α/√r in place of α/r. */
  rslora: flag().default(false),
  /** Modules trained whole and saved with the adapter. */
  modules_to_save: z.array(text('a module name'), { error: 'a list of module names' }).default([]),
});

const trainSchema = section({
  /** Passes over the data, 1 unless `steps` is given; fractions allowed. */
  epochs: positive().nullable().default(null),
  /** Optimizer steps, in place of `epochs`. */
  steps: wholeFrom(1).nullable().default(null),
  /** Groups (pairs, rankings) per optimizer step. */
  batch_size: wholeFrom(1).default(8),
  /**
   * A step is split into packs of about this many tokens; results do not depend on it but for rounding. auto: what the
   * processor's caches hold, and whole steps where a loss couples rows, a rollout is scored once for several uses, or a GPU
   * was asked for.
   */
  max_tokens_per_pack: z
    .union([z.literal('auto'), wholeFrom(1)], { error: 'auto or a whole number of at least 1' })
    .default('auto'),
  /** Keep only each layer's input and compute the rest again: less memory, about a third more time. */
  gradient_checkpointing: flag().default(false),
  /** AdamW's, at its highest. */
  learning_rate: notNegative().default(1e-4),
  /** How it falls to `min_learning_rate_ratio` by the last step. */
  schedule: choice(['constant', 'cosine', 'linear']).default('linear'),
  /** Where cosine and linear end, as a share of the learning rate. */
  min_learning_rate_ratio: share().default(0),
  /** Share of the steps. */
  warmup: share().default(0),
  /** AdamW's, decoupled; so are `beta1`, `beta2`, `eps`. */
  weight_decay: notNegative().default(0),
  beta1: share().default(0.9),
  beta2: share().default(0.999),
  eps: positive().default(1e-8),
  /** The gradient's norm is cut to this; null: off. */
  max_grad_norm: positive().nullable().default(1),
  /** Of weights and activations; auto: the weights' own, f16 as bf16. */
  dtype: choice(['auto', 'bf16', 'float32']).default('auto'),
  /** auto is the processor. */
  device: z
    .custom<DeviceName>((name) => typeof name === 'string' && isDeviceName(name), {
      error: 'auto, cpu, cuda or cuda:N',
    })
    .default('auto'),
  seed: wholeFrom(0).default(0),
  shuffle: flag().default(true),
  /** Of the processor; results do not depend on it. */
  threads: z
    .union([z.literal('auto'), wholeFrom(1)], { error: 'auto or a whole number of at least 1' })
    .default('auto'),
  /** Steps between checkpoints; null: only at the end and on a stop signal. */
  save_every: wholeFrom(1).nullable().default(100),
  /** Steps between lines of metrics.jsonl. */
  log_every: wholeFrom(1).default(10),
  /** Steps between evaluations; null: at every checkpoint and at the end. */
  eval_every: wholeFrom(1).nullable().default(null),
  /** Newest checkpoints kept, besides the best. */
  keep_checkpoints: wholeFrom(1).default(3),
  early_stopping: section({
    metric: text('a metric name such as eval_loss').default('eval_loss'),
    /** Evaluations without a better value before the run stops. */
    patience: wholeFrom(1).default(3),
    /** Null: min for a name that ends in loss, else max. */
    mode: choice(['min', 'max']).nullable().default(null),
  })
    .nullable()
    .default(null),
});

/** Shape of the new Llama that `pretrain` makes; names as in Hugging Face's config.json. */
const pretrainSchema = section({
  /** Folder with tokenizer.json. */
  tokenizer: text('a path'),
  /** null: the tokenizer's. */
  vocab_size: wholeFrom(2).nullable().default(null),
  hidden_size: wholeFrom(1).default(128),
  intermediate_size: wholeFrom(1).nullable().default(null),
  num_hidden_layers: wholeFrom(1).default(4),
  num_attention_heads: wholeFrom(1).default(4),
  num_key_value_heads: wholeFrom(1).nullable().default(null),
  max_position_embeddings: wholeFrom(2).default(2048),
  rms_norm_eps: positive().default(1e-5),
  rope_theta: positive().default(10000),
  tie_word_embeddings: flag().default(true),
  /** Standard deviation of the initial weights. */
  initializer_range: positive().default(0.02),
});

const rewardSchema = section({
  /** Standard deviation of a new head's weights; null: the model's initializer_range. */
  head_std: notNegative().nullable().default(null),
});

/** Rewards on the features of items, with `model: features`. */
export const featuresSchema = section({
  model: choice(featureModels).default('low-rank'),
  /** Size of what annotators share: columns of the factor, basis rewards, prototypes or shared features. */
  rank: wholeFrom(1).default(4),
  /** low-rank: an item's features are the columns of a matrix, one after the other, and rewards ⟨Θ_0 + V Z_u, Φ⟩. */
  columns: wholeFrom(1).default(1),
  /** Precision of the prior on an annotator's own parameters; null: 1 (0 in EM). */
  l2: notNegative().nullable().default(null),
  /** mixed: precision of the prior on what an annotator has beyond the shared directions; null: l2. */
  residual: positive().nullable().default(null),
  /** Lists to choose from by the likelihood of held-out votes of the training rows; null: as given above. */
  choose: section({
    model: z.array(choice(featureModels)).min(1, { error: 'at least one model' }).nullable().default(null),
    rank: z.array(wholeFrom(1)).min(1, { error: 'at least one rank' }).nullable().default(null),
    l2: z.array(notNegative()).min(1, { error: 'at least one precision' }).nullable().default(null),
    residual: z.array(positive()).min(1, { error: 'at least one precision' }).nullable().default(null),
    /** Share of each annotator's votes that judges the settings. */
    held_out: part().default(0.2),
  })
    .nullable()
    .default(null),
  /** low-rank: train by mini-batches of this many votes; null: to convergence. */
  batch_size: wholeFrom(1).nullable().default(null),
  /** With `batch_size`: passes over the votes, and Adam's rate at their start. */
  epochs: wholeFrom(1).default(10),
  learning_rate: positive().default(0.03),
  /** `blocks`: a batch has the votes between two groups of items, drawn anew for each pass; or all votes at random. */
  batches: choice(['blocks', 'random']).default('blocks'),
});

/** Types of annotators, found by EM (`em-dpo`, `em-reward`). Null: the default of policies or of rewards on features. */
export const emSchema = section({
  /** How many; a list is fitted in turn and the best kept. */
  types: z
    .union([wholeFrom(1), z.array(wholeFrom(1)).min(1, { error: 'at least one number of types' })], {
      error: 'a whole number of at least 1 or a list of them',
    })
    .default(2),
  /** How a list is chosen from. Policies: held_out, features: bic. */
  choose_by: choice(['bic', 'held_out', 'stability']).nullable().default(null),
  /** Rounds of E- and M-step of a start (of features: at most). Policies: 5, features: 60. */
  rounds: wholeFrom(1).nullable().default(null),
  /** random, k-means (of mean differences), spectral (of the agreement graph), or a path to responsibilities.csv. */
  init: text('random, k-means, spectral or a path').nullable().default(null),
  /** Starts; the likeliest is kept. Policies: 1, features: 8. */
  restarts: wholeFrom(1).nullable().default(null),
  /** Share of each type: from the responsibilities, or equal. */
  weights: choice(['learned', 'uniform']).default('learned'),
  /** Each annotator wholly of the likeliest type. */
  hard: flag().default(false),
  /** Divides the exponent of responsibilities. */
  temperature: positive().default(1),
  /** Of policies: passes over the rows in an M-step. */
  m_epochs: wholeFrom(1).default(1),
  /** Of policies: every M-step starts from the reference again, as the paper's does; else from the last round's policies. */
  restart: flag().default(false),
  /** Of policies: exact scores every row after the M-step; incremental takes the M-step's own forward passes. */
  e_step: choice(['exact', 'incremental']).default('exact'),
  /** Of policies: the E-step of a round looks only at one fold of the rows, which its M-step leaves out; 1: off. */
  folds: wholeFrom(1).default(1),
  /** Of policies: rows count nothing for a type with less responsibility than this. */
  skip_below: share().default(1e-3),
  /** Of policies: fit one type for all beside them, to tell whether types are needed. */
  compare_one: flag().default(true),
});

/** The configuration file. Cross-field rules stand in lib/config/load.ts. */
export const configSchema = section({
  /** What is trained, and how; blocks that belong to another method are refused. */
  method: choice(methods),
  /** A folder, hf:owner/name, or features: rewards on `data.items`. Not needed by pretrain, which can make a new one. */
  model: text('a folder, hf:owner/name or features').nullable().default(null),
  /** Rows to train and evaluate on, and how they are read. */
  data: dataSchema,
  /** LoRA, or `full`: all weights. */
  adapter: z
    .union([z.literal('full'), adapterSchema], { error: 'full or a mapping' })
    .nullable()
    .default(null),
  /** What is minimised. */
  loss: lossSchema.prefault({}),
  /** Steps, optimizer, files and processor. */
  train: trainSchema.prefault({}),
  /** The new model that `method: pretrain` makes. */
  pretrain: pretrainSchema.nullable().default(null),
  /** Of `method: reward`. */
  reward: rewardSchema.nullable().default(null),
  /** Of `model: features`. */
  features: featuresSchema.nullable().default(null),
  /** Types of annotators, of `method: em-dpo` and `em-reward`. */
  em: emSchema.nullable().default(null),
  /** Of policies that learn from their own samples: what they are rewarded for. */
  rewards: z
    .array(rewardTermSchema, { error: 'a list of rewards, each { type, weight, … }' })
    .min(1, { error: 'at least one reward' })
    .nullable()
    .default(null),
  /** How such policies are sampled. */
  rollout: rolloutSchema.nullable().default(null),
  /** Of `method: rloo`; so `grpo`, `reinforce` (of reinforce++) and `ppo`. */
  rloo: rlooSchema.nullable().default(null),
  grpo: grpoSchema.nullable().default(null),
  reinforce: reinforceSchema.nullable().default(null),
  ppo: ppoSchema.nullable().default(null),
  /** Of `method: soups`: wishes, mixes and what they are compared with. */
  soups: soupsSchema.nullable().default(null),
  /** Run folder, which is made; refused where it holds something else. */
  output: text('a path').nullable().default(null),
});

/** A configuration as it may be written; the comments of the schema say what each key does. */
export type Config = Input<typeof configSchema>;
export type ParsedConfig = z.output<typeof configSchema>;

/** LoRA settings, complete; null only beside `init_from`, whose own value holds. */
export type ResolvedAdapter = z.output<typeof adapterSchema>;
export type ResolvedLoss = Omit<z.output<typeof lossSchema>, 'type'> & { type: { type: LossType; weight: number }[] };
export type ResolvedData = Omit<z.output<typeof dataSchema>, 'train' | 'eval'> & {
  train: string[];
  eval: string[] | null;
};
export type ResolvedFeatures = Omit<z.output<typeof featuresSchema>, 'l2'> & { l2: number };
export type ResolvedEm = Omit<z.output<typeof emSchema>, 'choose_by' | 'rounds' | 'init' | 'restarts'> & {
  choose_by: 'bic' | 'held_out' | 'stability';
  rounds: number;
  init: string;
  restarts: number;
};
export type ResolvedEarlyStopping = { metric: string; patience: number; mode: 'min' | 'max' };
export type ResolvedTrain = Omit<z.output<typeof trainSchema>, 'early_stopping'> & {
  early_stopping: ResolvedEarlyStopping | null;
};

/** A checked configuration: every key present, every path absolute (but hf: models). It is a valid `Config` too. */
export type ResolvedConfig = Omit<
  ParsedConfig,
  'adapter' | 'loss' | 'data' | 'train' | 'reward' | 'features' | 'em' | 'rewards' | 'soups' | 'output'
> & {
  data: ResolvedData;
  adapter: 'full' | ResolvedAdapter;
  loss: ResolvedLoss;
  /** Exactly one of `epochs` and `steps` is not null. */
  train: ResolvedTrain;
  reward: z.output<typeof rewardSchema> | null;
  /** Null unless the model is `features`. */
  features: ResolvedFeatures | null;
  /** Null unless the method learns from its own samples; so are `rollout` and the method's own block. */
  rewards: ResolvedRewardTerm[] | null;
  soups: ResolvedSoups | null;
  /** Null unless the method finds types. */
  em: ResolvedEm | null;
  output: string;
};
