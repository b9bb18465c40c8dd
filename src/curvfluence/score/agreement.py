"""How far two sets of scores agree, query by query: what can be known without a truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence import kinds
from curvfluence.errors import InputError
from curvfluence.score.scores import Scores

TOP = 10


@dataclass(frozen=True, eq=False)
class Agreement:
    """`correlation[q]` is Spearman's between the two rows of scores of a query, NaN where one of
    them is constant; `top[q]` and `bottom[q]` how many of the `k` most helpful and most harmful
    examples both name."""

    correlation: Tensor
    top: Tensor
    bottom: Tensor
    k: int

    @property
    def mean(self) -> float:
        """Of the correlations that are defined."""
        return float(self.correlation.nanmean())

    @property
    def overlap(self) -> float:
        """The mean share of the k most helpful that both name."""
        return float(self.top.double().mean()) / self.k


def agreement(one: Scores, other: Scores, k: int = TOP) -> Agreement:
    """How far two rungs, dampings or models agree about the same examples and queries.

    Two that agree may both be wrong; where they do not, one of them is. Cost: two sorts of Q × N.
    Errors: `InputError` for scores of other shapes.
    """
    if one.values.shape != other.values.shape:
        raise InputError(
            f"scores to compare must be of the same queries and examples; seen "
            f"{tuple(one.values.shape)} and {tuple(other.values.shape)}"
        )
    k = min(kinds.count(k, "k"), one.values.shape[1])
    return Agreement(
        torch.tensor(
            [spearman(a, b) for a, b in zip(one.help, other.help, strict=True)],
            dtype=torch.float64,
        ),
        _shared(one.top(k).indices, other.top(k).indices),
        _shared(one.bottom(k).indices, other.bottom(k).indices),
        k,
    )


def _shared(a_qk: Tensor, b_qk: Tensor) -> Tensor:
    return (a_qk[:, :, None] == b_qk[:, None, :]).any(2).sum(1)


def spearman(a_n: Tensor, b_n: Tensor) -> float:
    """Pearson's of the ranks, ties averaged; NaN where a side is constant."""
    a, b = (_ranks(row) for row in (a_n, b_n))
    size = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / size) if size > 0 else float("nan")


def _ranks(row: Tensor) -> Tensor:
    """Centred ranks, equal ones averaged."""
    _, inverse, counts = row.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse] - (len(row) + 1) / 2
