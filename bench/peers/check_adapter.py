"""Scores rows with real transformers + PEFT, in the shape of `pluralign score --json`.

usage: check_adapter.py MODEL ADAPTER ROWS [--dtype float64]
ADAPTER may be NAME=DIR; `-` for the base alone. A SEQ_CLS adapter gives `rewards`, and no base (which has no head).
"""
import argparse
import json
from pathlib import Path

import torch

import oracle


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('model')
    parser.add_argument('adapter')
    parser.add_argument('rows')
    parser.add_argument('--dtype', default='float64', choices=['float64', 'float32', 'bfloat16'])
    options = parser.parse_args()
    torch.set_num_threads(1)

    name, _, folder = options.adapter.rpartition('=')
    folder = None if options.adapter == '-' else folder
    name = name or (Path(folder).name if folder else '')
    tokenizer = oracle.load_tokenizer(options.model)
    model = oracle.load(options.model, folder, getattr(torch, options.dtype))
    rewards = folder is not None and oracle.is_reward(folder)

    def score(prompt, completions):
        if rewards:
            return [oracle.reward(model, prompt, c).item() for c in completions]
        return [oracle.token_logps(model, prompt, c).double().sum().item() for c in completions]

    rows = []
    with torch.no_grad():
        for row in oracle.read_rows(options.rows):
            pairs = [oracle.encode(tokenizer, row['prompt'], c) for c in oracle.completions_of(row)]
            prompt, completions = pairs[0][0], [c for _, c in pairs]
            values = {}
            if folder is None:
                values['base'] = score(prompt, completions)
            elif not rewards:
                with model.disable_adapter():
                    values['base'] = score(prompt, completions)
            if folder is not None:
                values[name] = score(prompt, completions)
            rows.append({'rewards' if rewards else 'logps': values})
    policies = ([] if rewards else ['base']) + ([] if folder is None else [name])
    print(json.dumps(dict(policies=policies, rows=rows)))


if __name__ == '__main__':
    main()
