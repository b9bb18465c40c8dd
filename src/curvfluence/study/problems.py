"""The built-in problems: real data that ships in a package, a net, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from curvfluence.data import Examples
from curvfluence.errors import InputError
from curvfluence.losses import CrossEntropy
from curvfluence.measurement import LossMeasurement, Measurement
from curvfluence.truth import Recipe, sgd

SPLIT_SEED = 0  # the split is made once: it is part of the problem, not of a study's seed


@dataclass(frozen=True, eq=False)
class StudyProblem:
    """Data and training of a study, and how many subsets it takes unless told otherwise."""

    name: str
    train: Examples
    queries: Examples
    recipe: Recipe
    measurement: Measurement
    subsets: int


def mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with GELU between them."""
    layers: list[nn.Module] = []
    for width, following in pairwise(sizes):
        layers += [nn.Linear(width, following), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def digits(name: str, hidden: tuple[int, ...], subsets: int) -> StudyProblem:
    """scikit-learn's 1,797 handwritten digits: 1,617 to train on, 180 queries."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inputs = torch.from_numpy(np.asarray(bunch.data, dtype=np.float64))  # pyright: ignore[reportAttributeAccessIssue]
    targets = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))  # pyright: ignore[reportAttributeAccessIssue]
    train, queries = split(inputs, targets, share=0.9)
    loss = CrossEntropy()
    recipe = Recipe(
        architecture=partial(mlp, (64, *hidden, 10)),
        loss=loss,
        optimizer=sgd(0.03, momentum=0.9),
        batch_size=32,
        epochs=30,
        weight_decay=3e-3,
    )
    return StudyProblem(name, train, queries, recipe, LossMeasurement(loss), subsets)


def split(inputs: Tensor, targets: Tensor, *, share: float) -> tuple[Examples, Examples]:
    """Train and queries, standardised by the training rows (a constant feature becomes 0)."""
    n = len(inputs)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    size = round(share * n)
    train, queries = order[:size], order[size:]
    mean, std = inputs[train].mean(0), inputs[train].std(0, correction=0)
    scaled = (inputs - mean) / torch.where(std > 0, std, 1.0)
    require_disjoint(scaled[train], scaled[queries])
    return Examples(scaled[train], targets[train]), Examples(scaled[queries], targets[queries])


def require_disjoint(train: Tensor, queries: Tensor) -> None:
    """Refuse a query that is also a training example: its own copy would look like its cause."""
    seen = {row.numpy().tobytes(): n for n, row in enumerate(train)}
    shared = [
        (q, seen[key]) for q, row in enumerate(queries) if (key := row.numpy().tobytes()) in seen
    ]
    if shared:
        q, n = shared[0]
        raise InputError(
            f"query {q} is training example {n} ({len(shared)} such queries): train and queries "
            "must not overlap"
        )


BUILT_IN: dict[str, Callable[[], StudyProblem]] = {
    "digits": partial(digits, "digits", (16, 16), 60),
    "digits-large": partial(digits, "digits-large", (64, 32), 100),
}


def load(name: str) -> StudyProblem:
    """The built-in problem of that name. Errors: `InputError` lists the names."""
    if name not in BUILT_IN:
        raise InputError(f"there is no problem {name!r}; built in are {', '.join(BUILT_IN)}")
    return BUILT_IN[name]()
