"""Writes a Llama folder of SmolLM2-135M's shape with random bf16 weights: 30 layers, hidden 576, 9 heads, 3 key/value
heads, intermediate 1536, vocabulary 49,152, tied. Speed depends on shapes, not on what the weights know.

usage: make_model.py OUT [--tokenizer DIR]      DIR: a folder whose tokenizer is copied; else a byte-level one
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def byte_level(folder):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    names = dict(bos_token='<s>', eos_token='</s>', pad_token='<pad>')
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return dict(bos_token_id=256, eos_token_id=257, pad_token_id=258)


def copied(source, folder):
    for name in ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json'):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    config = json.loads((source / 'config.json').read_text())
    return {key: config[key] for key in ('bos_token_id', 'eos_token_id', 'pad_token_id') if key in config}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('out', type=Path)
    parser.add_argument('--tokenizer', type=Path)
    parser.add_argument('--layers', type=int, default=30)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ids = copied(options.tokenizer, options.out) if options.tokenizer else byte_level(options.out)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=options.layers,
                         num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5,
                         tie_word_embeddings=True, initializer_range=576 ** -0.5,
                         rope_parameters={'rope_type': 'default', 'rope_theta': 100000.0}, **ids)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(options.out)
    print(json.dumps(dict(folder=str(options.out), parameters=model.num_parameters())))


if __name__ == '__main__':
    main()
