"""U diag(Λ) Uᵀ with a dense orthogonal U, and what it takes to move between bases."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Operator, require_positive
from curvfluence.curvature.operators.dense import DiagonalOperator, cholesky_solve
from curvfluence.curvature.operators.kronecker import KroneckerEigen
from curvfluence.curvature.operators.symmetric import Symmetric


@dataclass(frozen=True, eq=False)
class Eigen(Operator):
    """A dense eigenbasis U, columns, with eigenvalues Λ. Cost: O(n²) a product or a solve; with a
    decay that is not uniform in the block, a Cholesky factor a damping."""

    vectors: Tensor
    values: Tensor

    @staticmethod
    def of(matrix: Tensor) -> Eigen:
        values, vectors = torch.linalg.eigh(matrix)
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
        eps = torch.finfo(total.dtype).eps
        require_positive(
            float(total.min()),
            float(total.max()),
            n=10,  # eigenvalues of a symmetric matrix come with an error of a few eps of its norm
            eps=eps,
            what="the damped eigenvalues",
        )
        return (v @ self.vectors / total) @ self.vectors.T

    def to_dense(self) -> Tensor:
        return (self.vectors * self.values) @ self.vectors.T

    def eigenvalues(self) -> Tensor:
        return self.values

    def mean_eigenvalue(self) -> float:
        return float(self.values.abs().mean())


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

    def mean_eigenvalue(self) -> float:
        return self.scale * self.operator.mean_eigenvalue()


def diagonalised(operator: Operator) -> KroneckerEigen | DiagonalOperator | Eigen:
    """The operator in a form whose eigenbasis is at hand: itself where it has one."""
    if type(operator) in (KroneckerEigen, DiagonalOperator, Eigen):
        return operator  # pyright: ignore[reportReturnType]
    if isinstance(operator, Symmetric) and operator.uniform:
        return Eigen(operator.vectors, operator.eigenvalues())
    if isinstance(operator, KroneckerEigen):  # factored damping: the basis without its inverse
        return KroneckerEigen(operator.out_basis, operator.in_basis, operator.values)
    return Eigen.of(operator.to_dense())


def with_values(
    operator: KroneckerEigen | DiagonalOperator | Eigen, values: Tensor
) -> KroneckerEigen | DiagonalOperator | Eigen:
    """The same eigenbasis with other eigenvalues, in the order of `operator.eigenvalues()`."""
    if isinstance(operator, DiagonalOperator):
        return DiagonalOperator(values)
    return replace(operator, values=values.reshape(operator.values.shape))


def diagonal_in(operator: KroneckerEigen | DiagonalOperator | Eigen, matrix: Tensor) -> Tensor:
    """diag(Uᵀ M U), [n], in the order of `operator.eigenvalues()`. Cost: O(n³), less for Kronecker
    bases; memory n²."""
    if isinstance(operator, DiagonalOperator):
        return matrix.diagonal().clone()
    if isinstance(operator, Eigen):
        return (operator.vectors * (matrix @ operator.vectors)).sum(0)
    half = operator.rotate(matrix).flatten(1)  # M U
    return operator.rotate(half.T).flatten(1).diagonal().clone()


def leading(operator: Operator, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest eigenvalues, descending, and their eigenvectors as columns [n, count]."""
    basis = diagonalised(operator)
    values, order = basis.eigenvalues().sort(descending=True)
    values, order = values[:count], order[:count]
    if isinstance(basis, Eigen):
        return values, basis.vectors[:, order]
    units = torch.zeros(len(order), basis.size, dtype=values.dtype, device=values.device)
    units[torch.arange(len(order)), order] = 1.0
    if isinstance(basis, DiagonalOperator):
        return values, units.T
    rows = units.reshape(len(order), *basis.values.shape)
    return values, basis.rotate_back(rows).T
