"""Which fixtures there are and what each one is there to catch. Values differ from the library defaults on purpose
(rope_theta, rms_norm_eps, head_dim), so that a key that is not read shows."""
from dataclasses import dataclass, field

import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

ALL = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']


@dataclass
class Spec:
    name: str
    seed: int
    config: type
    model: dict
    method: str = 'dpo'
    dtype: torch.dtype = torch.float32
    lora: dict = field(default_factory=lambda: dict(r=2, lora_alpha=4, target_modules=ALL))
    bos: bool = True
    old_keys: bool = False
    only_lm_head: bool = False
    shards: str | None = None
    sft: bool = False
    greedy: bool = True
    # keys put into config.json as they stand in files in the wild
    extra_config: dict = field(default_factory=dict)


def shape(**more):
    base = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                max_position_embeddings=128, rms_norm_eps=1e-4, tie_word_embeddings=True)
    return {**base, **more}


def rope(theta, **more):
    return dict(rope_parameters={'rope_type': 'default', 'rope_theta': theta, **more})


SPECS = [
    # Old keys (torch_dtype, rope_theta, no head_dim), every head its own keys, tied and stored only as lm_head.weight.
    Spec('parity-llama-old', 11, LlamaConfig, shape(intermediate_size=44, **rope(700.0)), old_keys=True,
         only_lm_head=True),
    # llama3 scaling that bends these short rows, one key/value head, odd sizes, untied, float16 weights in shards.
    Spec('parity-llama3-rope', 12, LlamaConfig,
         shape(hidden_size=36, intermediate_size=44, num_attention_heads=3, num_key_value_heads=1,
               tie_word_embeddings=False,
               **rope(500.0, rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                      original_max_position_embeddings=32)),
         dtype=torch.float16, shards='20KB', sft=True),
    # A window of 6 on rows of 10 to 30 tokens.
    Spec('parity-mistral', 13, MistralConfig, shape(num_key_value_heads=2, sliding_window=6, head_dim=8, **rope(900.0)),
         old_keys=True),
    # Biases on q, k, v; a window that is switched off; a tokenizer without BOS; bfloat16 weights, untied.
    Spec('parity-qwen2', 14, Qwen2Config, shape(num_key_value_heads=2, tie_word_embeddings=False, **rope(5000.0)),
         dtype=torch.bfloat16, bos=False,
         extra_config=dict(sliding_window=4, use_sliding_window=False, max_window_layers=1)),
    # Norms on q and k, head_dim × heads = 64 on a hidden size of 32, one key/value head.
    Spec('parity-qwen3', 15, Qwen3Config,
         shape(num_key_value_heads=1, head_dim=16, intermediate_size=36, **rope(3000.0))),
    # Ranks and alphas per module, rsLoRA, targets by regular expression.
    Spec('parity-patterns', 16, LlamaConfig, shape(num_key_value_heads=2, **rope(1000.0)),
         lora=dict(r=2, lora_alpha=3, use_rslora=True,
                   target_modules=r'.*\.(self_attn\.(q|v|o)_proj|mlp\.(up|down)_proj)',
                   rank_pattern={'down_proj': 5, r'layers\.1\.self_attn\.q_proj': 3},
                   alpha_pattern={'v_proj': 7, r'layers\.0\.mlp\.up_proj': 1.5})),
    # A reward model: scalar head saved with the adapter, Bradley–Terry.
    Spec('parity-reward', 17, LlamaConfig, shape(num_key_value_heads=2, **rope(2000.0)), method='reward', greedy=False),
]
