"""The mean of the eigenvalues that can be told from 0: the unit of a relative damping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps  # in every dtype, so that λ is the same in all of them


@dataclass(frozen=True)
class MeanEigenvalue:
    """Σ |eigenvalue| over the `count` of them that are above n ε max, ε that of float64.

    Zeros (words that no example has, inputs that are constant 0, more parameters than rows) say
    nothing of the scale of a curvature, and would pull a damping that is relative to it to nothing.
    """

    value: float
    count: int

    @property
    def total(self) -> float:
        """Σ |eigenvalue|: the trace where all are ≥ 0."""
        return self.value * self.count


def of_spectrum(values: Tensor, rank: int | None = None) -> MeanEigenvalue:
    """By all n eigenvalues; no more than `rank` of them, where that is known, are not rounding."""
    sizes = values.abs()
    return _of(sizes, float(sizes.double().sum()), rank)


def of_definite(diagonal: Tensor, rank: int | None = None) -> MeanEigenvalue:
    """Without eigenvalues, by the diagonal of a matrix M ⪰ 0: its sum is theirs, a row whose entry
    is 0 is 0, and no more than `rank` eigenvalues are not. So the count is a bound from above."""
    return _of(diagonal, float(diagonal.double().sum()), rank)


def of_parts(parts: Sequence[MeanEigenvalue], rank: int | None) -> MeanEigenvalue:
    """Of the whole matrix M ⪰ 0, by its diagonal blocks'."""
    total, count = sum(part.total for part in parts), sum(part.count for part in parts)
    count = count if rank is None else min(count, rank)
    return MeanEigenvalue(total / count if count else 0.0, count)


def _of(sizes: Tensor, total: float, rank: int | None) -> MeanEigenvalue:
    squared = (10 * torch.finfo(sizes.dtype).eps) ** 2  # what is left of a row that is 0, squared
    floor = max(sizes.numel() * EPS, squared) * float(sizes.max())
    count = int((sizes > floor).sum())
    count = count if rank is None else min(count, rank)
    return MeanEigenvalue(total / count if count else 0.0, count)
