"""M as a matrix, inverted by a Cholesky factor."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from curvfluence.curvature.operators.eigen import Eigen
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue, of_definite
from curvfluence.curvature.operators.operator import Operator
from curvfluence.curvature.operators.solve import cholesky_solve
from curvfluence.runtime.eigen_solver import eigvalsh


@dataclass(frozen=True, eq=False)
class Dense(Operator):
    """Of `rank` at most, where that is known. Cost: O(n²) a product; one Cholesky factor, n³/3, a
    damping."""

    matrix: Tensor
    rank: int | None = None

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.matrix)

    @property
    def nbytes(self) -> int:
        return self.matrix.nbytes

    def __matmul__(self, v: Tensor) -> Tensor:
        return v @ self.matrix

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        damped = self.matrix.clone()
        damped.diagonal().add_(decay + damping)
        return cholesky_solve(damped, v)

    def to_dense(self) -> Tensor:
        return self.matrix

    def eigenvalues(self) -> Tensor:
        return eigvalsh(self.matrix)

    def eigenbasis(self) -> Eigen:
        return Eigen.of(self.matrix)

    def mean_eigenvalue(self) -> MeanEigenvalue:
        return of_definite(self.matrix.diagonal(), self.rank)
