"""One epoch of low-rank rewards on features in PyTorch: full batch, and mini-batches with Adam.

r_ui = x_i · (w_0 + V z_u), Bradley-Terry over pairs, prior l2/2 |z_u|^2; float32. Every formulation that was thought of is
timed, and all are printed: one JSON object of seconds by formulation, medians over the rounds.

usage: features_torch.py DATA_FOLDER THREADS ROUNDS BATCH [cpu]  (features.f32, pairs.i32, voters.i32, shape.json)
cpu: seconds that the process computed for, in place of those that passed
"""
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

folder, threads, rounds, batch = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
shape = json.loads((folder / "shape.json").read_text())
n, d, k, m, N = (shape[name] for name in ("items", "features", "rank", "pairs", "voters"))
X = torch.from_numpy(np.fromfile(folder / "features.f32", dtype=np.float32)).view(n, d)
pairs = torch.from_numpy(np.fromfile(folder / "pairs.i32", dtype=np.int32)).view(m, 2).long()
better, worse = pairs[:, 0].contiguous(), pairs[:, 1].contiguous()
voter = torch.from_numpy(np.fromfile(folder / "voters.i32", dtype=np.int32)).long()
l2 = 1.0
clock = time.process_time if "cpu" in sys.argv[5:] else time.perf_counter


def parameters():
    torch.manual_seed(0)
    V = (torch.randn(d, k) / d**0.5).requires_grad_()
    mean = torch.zeros(d, 1, requires_grad=True)
    z = (0.1 * torch.randn(N, k)).requires_grad_()
    return V, mean, z


def projected(V, mean, z, a, b, u):
    """Every item projected once, then rows of the projection gathered."""
    P = X @ torch.cat([V, mean], 1)
    D = P[a] - P[b]
    return (D[:, :k] * z[u]).sum(1) + D[:, k]


def projected_embedding(V, mean, z, a, b, u):
    """The same with F.embedding, whose backward is another kernel than that of indexing."""
    P = X @ torch.cat([V, mean], 1)
    D = F.embedding(a, P) - F.embedding(b, P)
    return (D[:, :k] * F.embedding(u, z)).sum(1) + D[:, k]


def gathered(V, mean, z, a, b, u):
    """Rows of features gathered for each pair."""
    D = (X[a] - X[b]) @ torch.cat([V, mean], 1)
    return (D[:, :k] * z[u]).sum(1) + D[:, k]


def distinct(V, mean, z, a, b, u):
    """Each item of the batch projected once."""
    items, where = torch.unique(torch.cat([a, b]), return_inverse=True)
    P = X[items] @ torch.cat([V, mean], 1)
    D = F.embedding(where[: len(a)], P) - F.embedding(where[len(a) :], P)
    return (D[:, :k] * F.embedding(u, z)).sum(1) + D[:, k]


def full(rewards):
    V, mean, z = parameters()

    def epoch():
        loss = F.softplus(-rewards(V, mean, z, better, worse, voter)).sum() + 0.5 * l2 * z.square().sum()
        loss.backward()
        V.grad = mean.grad = z.grad = None

    return epoch


def mini(rewards):
    V, mean, z = parameters()
    optimizer = torch.optim.Adam([V, mean, z], lr=1e-3, fused=True)

    def epoch():
        order = torch.randperm(m)
        for at in range(0, m, batch):
            which = order[at : at + batch]
            a, b, u = better[which], worse[which], voter[which]
            loss = F.softplus(-rewards(V, mean, z, a, b, u)).mean() + 0.5 * l2 / m * z.square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return epoch


out = {}
# A full batch of gathered rows takes 2 GB an operand and many times the others' time: left out.
plan = {
    "full": {"projected": full(projected), "embedding": full(projected_embedding)},
    "mini": {"gathered": mini(gathered), "distinct": mini(distinct), "projected": mini(projected_embedding)},
}
for kind, formulations in plan.items():
    for name, epoch in formulations.items():
        if kind == "full":
            epoch()
        seconds = []
        for _ in range(rounds):
            start = clock()
            epoch()
            seconds.append(clock() - start)
        out[f"{kind} {name}"] = sorted(seconds)[len(seconds) // 2]
print(json.dumps(out))
