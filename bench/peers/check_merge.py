"""Merges adapters with PEFT's own `add_weighted_adapter` and says how far its update, and that of folders merged elsewhere,
lies from the true one: sum of w * scale * B A, in float64.

usage: check_merge.py MODEL --weights NAME=w,… --adapter NAME=DIR… [--ours METHOD=DIR…] [--svd-rank R]
"""
import argparse
import json

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def pairs(items):
    return dict(item.split('=', 1) for item in items)


def updates(model, name):
    """scale * B A of every adapted linear, by its name; as PEFT itself scales it."""
    return {
        key: module.scaling[name] * (module.lora_B[name].weight.double() @ module.lora_A[name].weight.double())
        for key, module in model.named_modules()
        if hasattr(module, 'lora_A') and name in module.lora_A
    }


def distance(got, truth):
    """Relative Frobenius distance over all linears together."""
    off = sum((got[key] - truth[key]).square().sum() for key in truth)
    return (off / sum(value.square().sum() for value in truth.values())).sqrt().item()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('model')
    parser.add_argument('--weights', required=True)
    parser.add_argument('--adapter', action='append', required=True)
    parser.add_argument('--ours', action='append', default=[])
    parser.add_argument('--svd-rank', type=int, default=None)
    options = parser.parse_args()
    adapters, weights = pairs(options.adapter), {k: float(v) for k, v in pairs(options.weights.split(',')).items()}
    names = list(adapters)
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapters[names[0]], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(adapters[name], adapter_name=name)
    parts = {name: updates(model, name) for name in names}
    truth = {key: sum(weights[name] * parts[name][key] for name in names) for key in parts[names[0]]}
    result = {'peft': {}, 'ours': {}}
    for method, more in (('linear', {}), ('cat', {}), ('svd', {'svd_rank': options.svd_rank})):
        try:
            model.add_weighted_adapter(names, [weights[n] for n in names], f'peft-{method}', combination_type=method, **more)
            result['peft'][method] = distance(updates(model, f'peft-{method}'), truth)
        except (ValueError, KeyError, RuntimeError) as error:
            result['peft'][method] = f'{type(error).__name__}: {error}'
    for method, folder in pairs(options.ours).items():
        model.load_adapter(folder, adapter_name=f'ours-{method}')
        result['ours'][method] = distance(updates(model, f'ours-{method}'), truth)
    print(json.dumps(result))


if __name__ == '__main__':
    main()
