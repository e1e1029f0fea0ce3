"""Dense and grouped low-rank products by PyTorch, in the shapes of `pluralign bench ops`, as JSON lines.

usage: python bench/peers/ops.py [--threads 1]

One thread is timed by the processor time it takes, more by the clock; medians of seven runs on random data.
"""
import argparse
import json
import statistics
import time

import torch

LAYERS = [(576, 1536), (1536, 576), (2048, 2048), (576, 49152)]


def seconds(call, threads, runs=7, least=0.02):
    now = time.thread_time if threads == 1 else time.perf_counter
    call()
    start = now()
    call()
    repeats = max(1, int(least / max(1e-9, now() - start)))
    times = []
    for _ in range(runs):
        start = now()
        for _ in range(repeats):
            call()
        times.append((now() - start) / repeats)
    return statistics.median(times)


def dense(threads):
    for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        for k, n in LAYERS:
            weight = torch.randn(n, k).to(dtype)
            for m in (1, 32, 256, 2048):
                if n > 8192 and m > 256:
                    continue
                x = torch.randn(m, k).to(dtype)
                s = seconds(lambda: torch.nn.functional.linear(x, weight), threads)
                yield {"op": "linear", "shape": f"{m}×{k}→{n}", "dtype": name, "gflops": 2e-9 * m * n * k / s, "ms": 1e3 * s}


def grouped(threads, requests=64):
    """One adapter for each request ("distinct"): a call for each, and one batched product."""
    for width, r in ((576, 8), (576, 16), (576, 64), (2048, 16), (4096, 16)):
        a, b = torch.randn(requests, width, r), torch.randn(requests, r, width)
        for rows in (1, 16, 64):
            x, y = torch.randn(requests, rows, width), torch.zeros(requests, rows, width)

            def loop():
                for i in range(requests):
                    y[i].addmm_(x[i] @ a[i], b[i])

            def batched():
                y.baddbmm_(torch.bmm(x, a), b)

            for way, call in (("loop", loop), ("bmm", batched)):
                s = seconds(call, threads)
                yield {"op": f"grouped-lora forward, {way}", "shape": f"{requests * rows}×{width}→{width} r{r} distinct ({requests})", "dtype": "float32", "gflops": 4e-9 * requests * rows * r * width / s, "ms": 1e3 * s}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    for case in (*dense(threads), *grouped(threads)):
        print(json.dumps({"peer": f"PyTorch {torch.__version__}", "threads": threads} | case, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
