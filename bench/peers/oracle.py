"""What the peers have in common: reading rows, tokenising them, and scoring them with real transformers + PEFT.

Tokens: prompt and completion are tokenised apart; BOS once in front where the tokenizer has one, EOS once behind the
completion. One row per forward pass, no padding, so that nothing depends on an attention mask.
"""
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding='utf-8').splitlines() if line.strip()]


def completions_of(row):
    """Completions in row order: chosen, rejected; responses; or the one completion."""
    if 'responses' in row:
        return row['responses']
    if 'completion' in row:
        return [row['completion']]
    return [row['chosen'], row['rejected']]


def encode(tokenizer, prompt, completion):
    """Token ids of the prompt (with BOS) and of the completion (with EOS)."""
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = tokenizer(prompt, add_special_tokens=False)['input_ids']
    return head + ids, tokenizer(completion, add_special_tokens=False)['input_ids'] + [tokenizer.eos_token_id]


def token_logps(model, prompt, completion):
    """Log-probability of each completion token, [len(completion)], in the model's dtype."""
    logits = model(torch.tensor([prompt + completion])).logits[0]
    rows = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return torch.log_softmax(logits[rows], -1)[torch.arange(len(completion)), torch.tensor(completion)]


def reward(model, prompt, completion):
    """Scalar head on the last token's final hidden state."""
    return model(torch.tensor([prompt + completion])).logits[0, 0]


def greedy(model, prompt, eos, tokens=24):
    """New ids by arg-max with a whole forward pass per token, and the smallest gap between the best two logits."""
    ids, gap = [], float('inf')
    while len(ids) < tokens and (not ids or ids[-1] != eos):
        with torch.no_grad():
            best = model(torch.tensor([prompt + ids])).logits[0, -1].topk(2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    return ids, gap


def load_tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def is_reward(adapter):
    config = json.loads((Path(adapter) / 'adapter_config.json').read_text())
    return config.get('task_type') == 'SEQ_CLS'


def load(folder, adapter=None, dtype=torch.float64, trainable=False):
    """The folder's model with an adapter on it; a SEQ_CLS adapter makes it a reward model with one label."""
    options = dict(dtype=dtype, attn_implementation='eager')
    if adapter is not None and is_reward(adapter):
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, **options)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=trainable)
    return model.to(dtype).eval()


def trainable_by_file_name(model):
    """Trainable parameters under the names that PEFT writes into adapter_model.safetensors."""
    strip = lambda name: name.replace('.modules_to_save.default', '').replace('.default', '')
    return {strip(name): p for name, p in model.named_parameters() if p.requires_grad}
