"""PyTorch + transformers + PEFT on one device, for bench/peers/cuda.mjs: reads one job as JSON on stdin, prints a line of JSON
for each thing it timed. Random weights; medians; memory is what was allocated at most beyond the weights.

jobs: {"part": "step", "config", "rows": [[prompt, chosen, rejected]], "rank", "batch", "packed", "seconds"}
      {"part": "lora", "shapes": [{"in", "out", "rank", "counts": [rows of each adapter]}], "seconds"}
      {"part": "attention", "shapes": [{"heads", "kv_heads", "dim", "batch", "length"}], "seconds"}
      {"part": "generate", "config", "adapters", "rank", "prompt", "new", "seconds"}
"""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

DEVICE = sys.argv[1] if len(sys.argv) > 1 else 'cuda'
ON_GPU = DEVICE.startswith('cuda')


def emit(**record):
    print(json.dumps(dict(side='torch', **record)), flush=True)


def wait():
    if ON_GPU:
        torch.cuda.synchronize()


def timed(body, seconds, most=50, at_once=1):
    """Median milliseconds of one call, `at_once` queued behind each other."""
    for _ in range(2):
        body()
    wait()
    each, begin = [], time.perf_counter()
    while not each or (time.perf_counter() - begin < seconds and len(each) < most):
        start = time.perf_counter()
        for _ in range(at_once):
            body()
        wait()
        each.append((time.perf_counter() - start) * 1e3 / at_once)
    return statistics.median(each)


def random_model(config):
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(LlamaConfig(**config), dtype=torch.bfloat16, attn_implementation='sdpa')


def lora_config(rank):
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules='all-linear', task_type='CAUSAL_LM')


def padded(rows):
    """Chosen, then rejected sequences of some rows: ids, mask, which tokens are completions."""
    texts = [(p, c) for i in (1, 2) for p, c in [(r[0], r[i]) for r in rows]]
    width = max(len(p) + len(c) for p, c in texts)
    ids, mask, read = (torch.zeros(len(texts), width, dtype=torch.long) for _ in range(3))
    for i, (p, c) in enumerate(texts):
        n = len(p) + len(c)
        ids[i, :n] = torch.tensor(p + c)
        mask[i, :n] = 1
        read[i, len(p):n] = 1
    return [t.to(DEVICE) for t in (ids, mask, read)]


def side_by_side(rows):
    """The same as one row without padding: ids, positions, which are completions, and each token's sequence."""
    ids, positions, read, of = [], [], [], []
    for s, (p, c) in enumerate((r[0], r[i]) for i in (1, 2) for r in rows):
        ids += p + c
        positions += range(len(p) + len(c))
        read += [0] * len(p) + [1] * len(c)
        of += [s] * (len(p) + len(c))
    return [torch.tensor(t, device=DEVICE)[None] for t in (ids, positions, read, of)]


def token_logps(logits, ids):
    """log p of each next token, as TRL takes it: a row at a time, since a whole float32 copy would not fit."""
    return torch.stack([row.gather(-1, i[:, None]).squeeze(-1) - torch.logsumexp(row, -1) for row, i in zip(logits[:, :-1], ids[:, 1:])])


def sums(model, batch, packed, pairs):
    if packed:
        ids, positions, read, of = batch
        logps = token_logps(model(input_ids=ids, position_ids=positions, use_cache=False).logits, ids)
        kept = logps.float() * read[:, 1:]
        return torch.zeros(2 * pairs, device=DEVICE).index_add(0, of[0, 1:], kept[0])
    ids, mask, read = batch
    logps = token_logps(model(input_ids=ids, attention_mask=mask, use_cache=False).logits, ids)
    return (logps.float() * read[:, 1:]).sum(-1)


def step(job):
    from peft import get_peft_model

    model = random_model(job['config'])
    weights = torch.cuda.memory_allocated() if ON_GPU else 0
    model = get_peft_model(model, lora_config(job['rank'])).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.float()  # factors in float32, as ours and as TRL keeps them
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=ON_GPU)
    rows, packed, batch = job['rows'], job['packed'], job['batch']
    batches = [(side_by_side if packed else padded)(rows[i:i + batch]) for i in range(0, len(rows), batch)]

    def whole_step():
        for i, b in enumerate(batches):
            pairs = len(rows[i * batch:(i + 1) * batch])
            with torch.autocast('cuda' if ON_GPU else 'cpu', torch.bfloat16):
                with torch.no_grad(), model.disable_adapter():
                    reference = sums(model, b, packed, pairs)
                policy = sums(model, b, packed, pairs)
            margin = (policy - reference)[:pairs] - (policy - reference)[pairs:]
            (-F.logsigmoid(0.1 * margin).sum() / len(rows)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
    ms = timed(whole_step, job['seconds'])
    peak = torch.cuda.max_memory_allocated() - weights if ON_GPU else 0
    emit(part='step', name='packed' if packed else 'padded', batch=batch, ms=ms, pairs_per_s=len(rows) / ms * 1e3, memory_mb=peak / 1e6)


def lora(job):
    """What adapters add to rows x: loop over adapters, gather + bmm, torch's grouped product where it is there."""
    for shape in job['shapes']:
        n, rank, counts = sum(shape['counts']), shape['rank'], shape['counts']
        kind = dict(device=DEVICE, dtype=torch.bfloat16)
        x, y = torch.randn(n, shape['in'], **kind), torch.randn(n, shape['out'], device=DEVICE)
        a = torch.randn(len(counts), shape['in'], rank, **kind) * shape['in'] ** -0.5
        b = torch.randn(len(counts), rank, shape['out'], **kind)
        which = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(DEVICE)
        ends = torch.tensor(counts).cumsum(0).to(torch.int32).to(DEVICE)
        starts = [sum(counts[:i]) for i in range(len(counts) + 1)]

        def loop():
            for i in range(len(counts)):
                y[starts[i]:starts[i + 1]] += x[starts[i]:starts[i + 1]] @ a[i] @ b[i]

        def gather_bmm():
            y.add_(torch.bmm(torch.bmm(x[:, None], a[which]), b[which])[:, 0])

        def grouped():
            y.add_(torch._grouped_mm(torch._grouped_mm(x, a, offs=ends), b, offs=ends))

        ways = dict(loop=loop, gather_bmm=gather_bmm, grouped_mm=grouped)
        if n > 512:
            del ways['gather_bmm']  # a copy of the factors for every row
        for name, body in ways.items():
            try:
                emit(part='lora', name=name, shape=shape, ms=timed(body, job['seconds'], at_once=10))
            except Exception as error:
                emit(part='lora', name=name, shape=shape, error=str(error).split('\n')[0])


def attention(job):
    """Causal attention of whole sequences, forward and with its backward pass; torch chooses the kernel."""
    for s in job['shapes']:
        kind = dict(device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        q = torch.randn(s['batch'], s['heads'], s['length'], s['dim'], **kind)
        k, v = (torch.randn(s['batch'], s['kv_heads'], s['length'], s['dim'], **kind) for _ in range(2))
        d = torch.randn_like(q)

        def forward():
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        def both():
            q.grad = k.grad = v.grad = None
            forward().backward(d)

        with torch.no_grad():
            ahead = timed(forward, job['seconds'], at_once=10)
        emit(part='attention', name='sdpa', shape=s, forward_ms=ahead, both_ms=timed(both, job['seconds'], at_once=10))


def generate(job):
    """One sequence for each adapter, all in one batch, PEFT's adapter_names."""
    from peft import get_peft_model

    model = get_peft_model(random_model(job['config']), lora_config(job['rank']), adapter_name='a0')
    for i in range(1, job['adapters']):
        model.add_adapter(f'a{i}', lora_config(job['rank']))
    model.eval()
    ids = torch.randint(0, job['config']['vocab_size'], (job['adapters'], job['prompt']), device=DEVICE)
    names = [f'a{i}' for i in range(job['adapters'])]

    def base():
        with torch.no_grad(), model.disable_adapter():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=job['new'], min_new_tokens=job['new'], do_sample=True, top_k=0, pad_token_id=0)

    def mixed():
        with torch.no_grad():
            model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=job['new'], min_new_tokens=job['new'], do_sample=True, top_k=0, pad_token_id=0,
                           adapter_names=names)

    for name, body in dict(base=base, adapters=mixed).items():
        begin = time.perf_counter()
        body()  # warms up
        wait()
        if time.perf_counter() - begin > job['seconds'] * 4:
            ms = (time.perf_counter() - begin) * 1e3
        else:
            ms = timed(body, job['seconds'], most=5)
        emit(part='generate', name=name, ms=ms, tokens_per_s=job['adapters'] * job['new'] / ms * 1e3)


def limits(seconds):
    """Rates that others are held against: a large product in bfloat16, a copy."""
    n = 8192 if ON_GPU else 512
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    c = torch.randn((1 << 30) // 4 if ON_GPU else 1 << 20, device=DEVICE)
    d = torch.empty_like(c)
    emit(part='limits', tflop_per_s=2 * n ** 3 / timed(lambda: a @ b, seconds) / 1e9,
         gb_per_s=2 * c.numel() * 4 / timed(lambda: d.copy_(c), seconds) / 1e6, torch=torch.__version__)


def main():
    job = json.loads(sys.stdin.read())
    torch.manual_seed(0)
    limits(0.3)
    dict(step=step, lora=lora, attention=attention, generate=generate)[job['part']](job)


if __name__ == '__main__':
    main()
