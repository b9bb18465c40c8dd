"""M through a dense orthogonal eigenbasis, and c M."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from curvfluence.curvature.operators.decomposed import eigh
from curvfluence.curvature.operators.denominator import Denominator
from curvfluence.curvature.operators.mean_eigenvalue import MeanEigenvalue, of_spectrum
from curvfluence.curvature.operators.operator import (
    Diagonalised,
    Operator,
    squared,
)
from curvfluence.curvature.operators.solve import cholesky_solve


@dataclass(frozen=True, eq=False)
class Eigen(Diagonalised):
    """U diag(Λ) Uᵀ with U as columns. Cost: O(n²) a product or a solve; with a decay that is not
    uniform in the block, a Cholesky factor a damping."""

    vectors: Tensor
    values: Tensor

    @staticmethod
    def of(matrix: Tensor) -> Eigen:
        values, vectors = eigh(matrix)
        return Eigen(vectors, values)

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes + self.values.nbytes

    def __matmul__(self, v: Tensor) -> Tensor:
        return (v @ self.vectors * self.values) @ self.vectors.T

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        if bool((decay != decay[0]).any()):
            damped = self.to_dense()
            damped.diagonal().add_(decay + damping)
            return cholesky_solve(damped, v)
        total = self.values + (decay[0] + damping)
        x = v @ self.vectors / total
        Denominator.of(total).require_trusted(x)
        return x @ self.vectors.T

    def to_dense(self) -> Tensor:
        return (self.vectors * self.values) @ self.vectors.T

    def eigenvalues(self) -> Tensor:
        return self.values

    def mean_eigenvalue(self) -> MeanEigenvalue:
        return of_spectrum(self.values)

    def with_eigenvalues(self, values: Tensor) -> Eigen:
        return replace(self, values=values)

    def diagonal_of(self, matrix: Tensor) -> Tensor:
        return (self.vectors * (matrix @ self.vectors)).sum(0)

    def coordinates(self, v: Tensor) -> Tensor:
        return v @ self.vectors

    def eigenvectors(self, which: Tensor) -> Tensor:
        return self.vectors[:, which]

    def squared_norm(self) -> float:
        return squared(self.values)


@dataclass(frozen=True, eq=False)
class Scaled(Operator):
    """c M."""

    operator: Operator
    scale: float

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.operator.size

    @property
    def nbytes(self) -> int:
        return self.operator.nbytes

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.scale * (self.operator @ v)

    def solve(self, v: Tensor, decay: Tensor, damping: float) -> Tensor:
        return self.operator.solve(v, decay / self.scale, damping / self.scale) / self.scale

    def to_dense(self) -> Tensor:
        return self.scale * self.operator.to_dense()

    def eigenvalues(self) -> Tensor:
        return self.scale * self.operator.eigenvalues()

    def eigenbasis(self) -> Diagonalised:
        basis = self.operator.eigenbasis()
        return basis.with_eigenvalues(self.scale * basis.eigenvalues())

    def mean_eigenvalue(self) -> MeanEigenvalue:
        own = self.operator.mean_eigenvalue()
        return replace(own, value=self.scale * own.value)
