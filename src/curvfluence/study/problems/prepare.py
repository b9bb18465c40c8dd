"""From raw rows to examples: one split, and nothing learnt from the queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.errors import InputError

SPLIT_SEED = 0  # the split is made once: it is part of the problem, not of a study's seed
FLIP_SEED = 1  # which labels are changed, and to what: likewise


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of the rows to train on and of those to ask about."""

    train: Tensor
    queries: Tensor

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows[self.train], rows[self.queries]


def split(rows: Tensor, *, share: float) -> Split:
    """A random `share` of the rows to train on, the rest as queries.

    Errors: `InputError` where a query has the same content as a training row.
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SPLIT_SEED))
    size = round(share * len(rows))
    found = Split(order[:size], order[size:])
    require_disjoint(*found.of(rows))
    return found


def shared_rows(train: Tensor, queries: Tensor) -> list[tuple[int, int]]:
    """(query, training example) of every query whose row is also a training row, by content."""
    seen = {row.numpy().tobytes(): n for n, row in enumerate(train)}
    keys = ((q, row.numpy().tobytes()) for q, row in enumerate(queries))
    return [(q, seen[key]) for q, key in keys if key in seen]


def require_disjoint(train: Tensor, queries: Tensor) -> None:
    """Refuse a query that is also a training example: its own copy would look like its cause."""
    shared = shared_rows(train, queries)
    if shared:
        q, n = shared[0]
        raise InputError(
            f"query {q} is training example {n} ({len(shared)} such queries): train and queries "
            "must not overlap"
        )


def standardise(train: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """(x − mean) / std with the training rows' statistics; a constant feature becomes 0."""
    mean, std = train.mean(0), train.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    return (train - mean) / std, (queries - mean) / std


def principal_components(train: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` principal components of the training rows.

    By scikit-learn, which fixes their signs: equal rows give equal components.
    """
    from sklearn.decomposition import PCA

    pca = PCA(count, svd_solver="covariance_eigh").fit(train.numpy())
    return torch.from_numpy(pca.transform(train.numpy())), torch.from_numpy(
        pca.transform(queries.numpy())
    )


def flip_labels(labels: Tensor, share: float, classes: int) -> tuple[Tensor, Tensor]:
    """Labels of which a random `share` became another class, uniformly; and which, ascending."""
    generator = torch.Generator().manual_seed(FLIP_SEED)
    count = round(share * len(labels))
    index = torch.randperm(len(labels), generator=generator)[:count].sort().values
    step = torch.randint(1, classes, (count,), generator=generator)
    changed = labels.clone()
    changed[index] = (labels[index] + step) % classes
    return changed, index
