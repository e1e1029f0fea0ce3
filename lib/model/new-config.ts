import { parseModelConfig } from './config.js';
import type { Json } from './folder.js';

/** The shape of a Llama to be trained from nothing. */
export interface NewModelOptions {
  vocabSize: number;
  hiddenSize: number;
  layers: number;
  heads: number;
  /** Default: `heads`. */
  kvHeads?: number;
  /** Default: 8/3 × hiddenSize, rounded up to a multiple of 32. */
  intermediateSize?: number;
  /** Default 1024. */
  maxPositions?: number;
  /** Default 10000. */
  ropeTheta?: number;
  /** Default 1e-5. */
  normEps?: number;
  /** Whether the head is the embedding matrix; default true. */
  tied?: boolean;
  /** Standard deviation of the initial weights; default 0.02. */
  initializerRange?: number;
  /** What the weights will be saved as; default float32. */
  dtype?: 'float32' | 'bfloat16';
  bosId?: number | null;
  eosId?: number | null;
  padId?: number | null;
}

/**
 * A config.json for a new Llama, with the keys that old and new transformers read. Throws `BAD_FILE` naming the key where
 * the shape makes no sense (heads that do not divide the width, …).
 */
export function newConfig(options: NewModelOptions): Json {
  const theta = options.ropeTheta ?? 10000;
  const dtype = options.dtype ?? 'float32';
  const json: Json = {
    architectures: ['LlamaForCausalLM'],
    attention_bias: false,
    attention_dropout: 0,
    bos_token_id: options.bosId ?? null,
    dtype,
    eos_token_id: options.eosId ?? null,
    head_dim: options.hiddenSize / options.heads,
    hidden_act: 'silu',
    hidden_size: options.hiddenSize,
    initializer_range: options.initializerRange ?? 0.02,
    intermediate_size: options.intermediateSize ?? Math.ceil((options.hiddenSize * 8) / 3 / 32) * 32,
    max_position_embeddings: options.maxPositions ?? 1024,
    mlp_bias: false,
    model_type: 'llama',
    num_attention_heads: options.heads,
    num_hidden_layers: options.layers,
    num_key_value_heads: options.kvHeads ?? options.heads,
    pad_token_id: options.padId ?? null,
    pretraining_tp: 1,
    rms_norm_eps: options.normEps ?? 1e-5,
    rope_parameters: { rope_theta: theta, rope_type: 'default' },
    rope_theta: theta,
    tie_word_embeddings: options.tied ?? true,
    torch_dtype: dtype,
    use_cache: true,
    vocab_size: options.vocabSize,
  };
  parseModelConfig(json, 'new model');
  return json;
}
