"""Which training images helped a digit classifier most on each query?

    python examples/digits.py

Prints what the scores are of (rung, damping, unit, coverage), then for each of five images of
scikit-learn's Digits the three that helped most and the three that hurt most, with their labels.
"""

from __future__ import annotations

from time import perf_counter

import torch
from sklearn.datasets import load_digits
from torch import nn

import curvfluence as cf

start = perf_counter()
x, y = load_digits(return_X_y=True)
inputs, labels = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
train, queries = (inputs[:1500], labels[:1500]), (inputs[1500:1505], labels[1500:1505])

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=1e-3)
for _ in range(200):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(train[0]), train[1]).backward()
    optimizer.step()

problem = cf.Problem(model, cf.CrossEntropy(), train, queries, weight_decay=1e-3)
scores = cf.influence(problem, cf.EKFAC(), damping=cf.Relative(0.1))
print(scores)

top, bottom = scores.top(3), scores.bottom(3)
for q, label in enumerate(queries[1].tolist()):
    helpful = [f"{n} (a {labels[n]})" for n in top.indices[q].tolist()]
    harmful = [f"{n} (a {labels[n]})" for n in bottom.indices[q].tolist()]
    print(f"query {q}, a {label}: helped by {', '.join(helpful)}; hurt by {', '.join(harmful)}")
print(f"seconds: {perf_counter() - start:.1f}")
