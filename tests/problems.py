"""Small problems in float64 that the tests share."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvfluence import MSE, BinaryCrossEntropy, CrossEntropy, CustomLoss, Problem
from curvfluence.problem.losses import Loss


def mlp(*sizes: int, activation: type[nn.Module] = nn.GELU, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k, (i, o) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(i, o, bias=bias))
        if k < len(sizes) - 2:
            layers.append(activation())
    return nn.Sequential(*layers)


def targets_for(loss: Loss, n: int, k: int, generator: torch.Generator) -> Tensor:
    if isinstance(loss, CrossEntropy):
        return torch.randint(0, k, (n,), generator=generator)
    if isinstance(loss, BinaryCrossEntropy):
        return torch.randint(0, 2, (n, k), generator=generator).double()
    return torch.randn(n, k, generator=generator, dtype=torch.float64)


def make(
    model: nn.Module,
    loss: Loss,
    *,
    shape: tuple[int, ...] = (5,),
    outputs: int = 3,
    n: int = 12,
    q: int = 4,
    weight_decay: float | dict[str, float] = 0.01,
    seed: int = 0,
    **settings: object,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n + q, *shape, generator=generator, dtype=torch.float64)
    y = targets_for(loss, n + q, outputs, generator)
    return Problem(
        model.double(),
        loss,
        (x[:n], y[:n]),
        (x[n:], y[n:]),
        weight_decay=weight_decay,
        **settings,  # pyright: ignore[reportArgumentType]
    )


def huber(output: Tensor, target: Tensor) -> Tensor:
    return F.smooth_l1_loss(output, target, reduction="none", beta=10.0).sum(-1)


def log_cosh(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).cosh().log().sum(-1)


class Mixed(nn.Module):
    """Covered Linears, a LayerNorm, a raw parameter, a Linear used twice and one over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 1.5, 1.0, 2.0, 0.7]))
        self.first = nn.Linear(5, 4)
        self.norm = nn.LayerNorm(4)
        self.twice = nn.Linear(4, 4)
        self.positions = nn.Linear(2, 2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.norm(self.first(x * self.scale)))
        h = torch.tanh(self.twice(torch.tanh(self.twice(h))))
        h = self.positions(h.reshape(-1, 2, 2)).flatten(1)
        return self.head(h)


def seeded(seed: int = 0) -> None:
    torch.manual_seed(seed)


def chain_problem() -> Problem:
    seeded()
    return make(mlp(5, 4, 6, 3), CrossEntropy())


def mixed_problem() -> Problem:
    seeded()
    return make(Mixed(), CrossEntropy())


def all_problems() -> dict[str, Problem]:
    seeded()
    per_tensor = {"0.weight": 0.02, "2.weight": 0.005, "4.weight": 0.01}
    return {
        "cross-entropy": make(mlp(5, 4, 6, 3), CrossEntropy()),
        "smoothed": make(mlp(5, 4, 3, activation=nn.Tanh), CrossEntropy(label_smoothing=0.1)),
        "class-weights": make(
            mlp(5, 4, 3, activation=nn.SiLU), CrossEntropy(weight=torch.tensor([1.0, 2.0, 0.5]))
        ),
        "mse": make(mlp(5, 4, 4, 3, activation=nn.Softplus), MSE()),
        "binary": make(mlp(5, 4, 2), BinaryCrossEntropy(), outputs=2),
        "custom": make(mlp(5, 4, 2), CustomLoss(log_cosh), outputs=2),
        "relu, no bias": make(mlp(5, 4, 3, activation=nn.ReLU, bias=False), CrossEntropy()),
        "bias without decay": make(mlp(5, 4, 6, 3), CrossEntropy(), weight_decay=per_tensor),
        "linear": make(mlp(5, 3), CrossEntropy()),
    }
