"""Digits, standardised, and nets trained on it: real data for the tests that need it."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import curvfluence as cf
from tests.problems import mlp


@cache
def digits(n: int, q: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y) of n training examples and q queries, float64, standardised by the training rows."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: n + q]
    x, y = torch.from_numpy(x)[order], torch.from_numpy(y)[order]
    mean, std = x[:n].mean(0), x[:n].std(0)
    x = (x - mean) / torch.where(std > 0, std, 1.0)
    return x[:n], y[:n], x[n:], y[n:]


def fit_net(model: nn.Module, x: Tensor, y: Tensor, *, steps: int, decay: float = 0.0) -> float:
    """Full-batch Adam; returns the final training loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=decay)
    loss = torch.tensor(0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@cache
def well_fitted() -> tuple[cf.Problem, cf.Problem, float]:
    """The same net, trained to a loss below 1e-3, as a float32 and a float64 problem."""
    x, y, xq, yq = (t.float() if t.is_floating_point() else t for t in digits(500, 60))
    torch.manual_seed(0)
    model = mlp(64, 16, 16, 10)
    loss = fit_net(model, x, y, steps=400)
    single = cf.Problem(model, cf.CrossEntropy(), (x, y), (xq, yq))
    weights = {name: value.double() for name, value in model.state_dict().items()}
    double = cf.Problem(
        mlp(64, 16, 16, 10).double(), cf.CrossEntropy(), (x, y), (xq, yq), weights=weights
    )
    return single, double, loss
