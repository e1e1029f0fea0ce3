"""transformers' generate, for bench/peers/generate.mjs and test/generation-interop.test.ts.

usage: hf_generate.py MODEL [--dtype float32] [--threads 2] [--greedy]
A line of JSON in, a line out. Timing: {"prompts": [[ids]], "new": N, "seed": S} → {"seconds", "tokens"}: sampling at temperature
1 without cuts, N new tokens each, prompts of one length. With --greedy: {"prompts", "new"} → {"ids": [[…]], "gap": smallest
distance of the two best logits on the way}, each prompt alone, up to EOS.
"""
import argparse
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def timed(model, job):
    ids = torch.tensor(job['prompts'])
    torch.manual_seed(job['seed'])
    started = time.perf_counter()
    cpu = time.process_time()
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=job['new'], min_new_tokens=job['new'],
                         do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0)
    seconds = time.perf_counter() - started
    return dict(seconds=seconds, cpu=time.process_time() - cpu, tokens=(out.shape[1] - ids.shape[1]) * ids.shape[0])


def greedy(model, job):
    texts, gap = [], float('inf')
    for prompt in job['prompts']:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=job['new'], do_sample=False, num_beams=1,
                             pad_token_id=0, output_logits=True, return_dict_in_generate=True)
        texts.append(out.sequences[0, len(prompt):].tolist())
        for row in out.logits:
            best = row[0].topk(2).values
            gap = min(gap, (best[0] - best[1]).item())
    return dict(ids=texts, gap=gap)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('model')
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--greedy', action='store_true')
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    print('ready', flush=True)
    for line in sys.stdin:
        with torch.no_grad():
            print(json.dumps((greedy if options.greedy else timed)(model, json.loads(line))), flush=True)


if __name__ == '__main__':
    main()
