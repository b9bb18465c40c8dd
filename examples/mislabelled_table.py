"""Finding wrong labels in a table: self-influence beside plain loss.

    python examples/mislabelled_table.py

Flips 10% of the labels of scikit-learn's breast cancer table, trains a small net on them, and ranks
the rows by their self-influence under EK-FAC, by the norm of their gradients, and by their loss.
Prints, for three random flips, which share of the flipped rows stands among the first 15%. Expect a
tie: plain loss, which costs nothing, is hard to beat at this. What self-influence adds is a unit:
by how many nats a row's own loss would rise without it.
"""

from __future__ import annotations

from time import perf_counter

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import scale
from torch import nn

import curvfluence as cf

start = perf_counter()
x, y = load_breast_cancer(return_X_y=True)
inputs, right = torch.tensor(scale(x), dtype=torch.float32), torch.tensor(y)
n = len(right)
first = round(0.15 * n)
print(f"flipped labels among the first {first} of {n} rows (at random: 15%)")
print("seed  flipped  EK-FAC self-influence  gradient norm   loss")
for seed in range(3):
    torch.manual_seed(seed)
    flipped = torch.zeros(n, dtype=torch.bool)
    flipped[torch.randperm(n)[: n // 10]] = True
    labels = torch.where(flipped, 1 - right, right)

    model = nn.Sequential(nn.Linear(30, 16), nn.GELU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    data = inputs, labels
    problem = cf.Problem(model, cf.CrossEntropy(), data, data, weight_decay=1e-2)
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(inputs), labels, reduction="none")
    ranked = {
        "EK-FAC self-influence": cf.self_influence(problem, cf.EKFAC()),
        "gradient norm": cf.self_influence(problem, cf.Identity(), damping=cf.Absolute(1.0)),
        "loss": loss,
    }
    found = {
        name: flipped[values.topk(first).indices].sum() / flipped.sum()
        for name, values in ranked.items()
    }
    shown = "  ".join(f"{share:>{len(name)}.0%}" for name, share in found.items())
    print(f"{seed:4d}  {int(flipped.sum()):7d}  {shown}")
print(f"seconds: {perf_counter() - start:.1f}")
