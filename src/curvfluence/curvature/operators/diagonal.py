"""M = diag(d)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.operators.definite import require_positive
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue, of_spectrum
from curvfluence.curvature.operators.operator import Diagonalised, Operator, squared

SMALL = 2048  # of a dense matrix that is formed for a distance


@dataclass(frozen=True, eq=False)
class DiagonalOperator(Diagonalised):
    """Cost: O(n)."""

    diagonal: Tensor

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.diagonal)

    @property
    def nbytes(self) -> int:
        return self.diagonal.nbytes

    def __matmul__(self, v: Tensor) -> Tensor:
        return v * self.diagonal

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        total = self.diagonal + decay + damping
        # Elementwise inverses lose nothing to conditioning: only a zero (or less) is singular.
        smallest, largest = float(total.min()), float(total.max())
        require_positive(smallest, largest, n=0, eps=0.0, what="the diagonal plus damping")
        return v / total

    def to_dense(self) -> Tensor:
        return torch.diag(self.diagonal)

    def eigenvalues(self) -> Tensor:
        return self.diagonal

    def mean_eigenvalue(self) -> MeanEigenvalue:
        return of_spectrum(self.diagonal)

    def with_eigenvalues(self, values: Tensor) -> DiagonalOperator:
        return DiagonalOperator(values)

    def diagonal_of(self, matrix: Tensor) -> Tensor:
        return matrix.diagonal().clone()

    def coordinates(self, v: Tensor) -> Tensor:
        return v

    def eigenvectors(self, which: Tensor) -> Tensor:
        units = self.diagonal.new_zeros(self.size, len(which))
        units[which, torch.arange(len(which))] = 1.0
        return units

    def squared_norm(self) -> float:
        return squared(self.diagonal)

    def diagonal_entries(self) -> Tensor:
        return self.diagonal

    def squared_distance_of(self, other: Operator) -> float | None:
        """What the other has off its diagonal, a difference of squares that is known to rounding of
        those, and the distance on it; None where a dense matrix is small, which has no difference.
        """
        if self.size <= SMALL:
            return None
        entries = other.diagonal_entries()
        off = other.squared_norm() - squared(entries)
        return max(0.0, off) + squared(entries, self.diagonal)
