"""Dense and grouped low-rank products by PyTorch, for products.mjs: the same lines in and nanoseconds out as products.cc.

usage: python bench/peers/products_torch.py [THREADS]
"""
import sys
import time

import torch

SCALE = 1e-3


def prepare_linear(way, kind, m, k, n, _seconds):
    if way != "torch":
        return None
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    x, weight = torch.rand(int(m), int(k)).mul_(2).sub_(1).to(dtype), torch.rand(int(n), int(k)).mul_(2).sub_(1).to(dtype)
    return lambda: torch.nn.functional.linear(x, weight)


def prepare_lora(way, width, r, each, backward, *counts):
    width, r, each = int(width), int(r), int(each)
    rows = [int(c) * each for c in counts]
    total = sum(rows)
    x, y, dx = torch.rand(total, width), torch.rand(total, width), torch.zeros(total, width)
    h = torch.rand(total, r)
    a, b = torch.rand(len(rows), r, width), torch.rand(len(rows), width, r)
    da, db = torch.zeros_like(a), torch.zeros_like(b)
    starts = [sum(rows[:i]) for i in range(len(rows))]
    # Views are made before the clock starts, as a training loop would keep them.
    parts = [
        (x[s : s + n], y[s : s + n], h[s : s + n], dx[s : s + n], a[i], b[i], da[i], db[i])
        for i, (s, n) in enumerate(zip(starts, rows))
    ]

    def loop():
        for xs, ys, hs, _, ai, bi, _, _ in parts:
            torch.mm(xs, ai.t(), out=hs)
            ys.addmm_(hs, bi.t(), alpha=SCALE)

    def loop_backward():
        for xs, ys, hs, dxs, ai, bi, dai, dbi in parts:
            dbi.addmm_(ys.t(), hs, alpha=SCALE)
            dh = torch.mm(ys, bi).mul_(SCALE)
            dai.addmm_(dh.t(), xs)
            dxs.addmm_(dh, ai)

    # A copy of the factors for each request, and one batched product.
    requests = torch.tensor([i for i, c in enumerate(counts) for _ in range(int(c))])
    xb, yb, hb, dxb = (t.view(len(requests), each, -1) for t in (x, y, h, dx))

    def gather():
        torch.bmm(xb, a[requests].transpose(1, 2), out=hb)
        yb.baddbmm_(hb, b[requests].transpose(1, 2), alpha=SCALE)

    def gather_backward():
        db.index_add_(0, requests, torch.bmm(yb.transpose(1, 2), hb), alpha=SCALE)
        dh = torch.bmm(yb, b[requests]).mul_(SCALE)
        da.index_add_(0, requests, torch.bmm(dh.transpose(1, 2), xb))
        dxb.baddbmm_(dh, a[requests])

    ways = {"torch": (loop, loop_backward), "torch-bmm": (gather, gather_backward)}
    return ways[way][int(backward)] if way in ways else None


def main():
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    now = time.thread_time_ns if threads == 1 else time.perf_counter_ns
    wipe = torch.zeros(64 << 20, dtype=torch.uint8)
    print(f"PyTorch {torch.__version__}", flush=True)
    made, call = None, None
    for line in sys.stdin:
        what, *words = line.split()
        if line != made:
            call = prepare_linear(*words) if what == "linear" else prepare_lora(*words)
            made = line
            if call:
                call()
        if not call:
            print("none", flush=True)
            continue
        repeats = 1
        if what == "linear":
            start = now()
            call()
            repeats = max(1, int(1e9 * float(words[-1]) / max(1, now() - start)))
        else:
            wipe.add_(1)
        start = now()
        for _ in range(repeats):
            call()
        print((now() - start) / repeats, flush=True)


main()
