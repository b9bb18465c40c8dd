"""Operators without structure of their own: diagonal and dense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.base import Operator, require_positive
from curvfluence.errors import SingularError


@dataclass(frozen=True, eq=False)
class DiagonalOperator(Operator):
    """M = diag(d). Cost: O(n)."""

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
        _require_elementwise(total, "the diagonal plus damping")
        return v / total

    def to_dense(self) -> Tensor:
        return torch.diag(self.diagonal)

    def eigenvalues(self) -> Tensor:
        return self.diagonal

    def mean_eigenvalue(self) -> float:
        return float(self.diagonal.abs().mean())


def _require_elementwise(total: Tensor, what: str) -> None:
    # Elementwise inverses lose nothing to conditioning: only a zero (or less) is singular.
    require_positive(float(total.min()), float(total.max()), n=0, eps=0.0, what=what)


@dataclass(frozen=True, eq=False)
class Dense(Operator):
    """M as a matrix. Cost: O(n²) a product; one Cholesky factor, n³/3, a damping."""

    matrix: Tensor

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
        return torch.linalg.eigvalsh(self.matrix)

    def mean_eigenvalue(self) -> float:
        return float(self.matrix.diagonal().mean())


def cholesky_solve(matrix: Tensor, v: Tensor) -> Tensor:
    """matrix⁻¹ v for v [..., n] and a positive definite matrix, which is overwritten."""
    n = len(matrix)
    diagonal = matrix.diagonal().clone()
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise SingularError(
            f"C + diag(w) + λI is not positive definite (its leading minor of order {int(info)} of "
            f"{n} is not). Use a larger damping, Relative(0.1) for a start"
        )
    _require_pivots(factor.diagonal() ** 2, diagonal)
    flat = v.reshape(-1, n)
    return torch.cholesky_solve(flat.T, factor).T.reshape(v.shape)


def _require_pivots(pivots: Tensor, diagonal: Tensor) -> None:
    """Raise `SingularError` where a pivot cannot be told from zero.

    The factor is that of a matrix off by about √n eps √(a_ii a_jj) in entry ij, so each pivot is
    held against its own a_ii: one of λ in a row of C that is zero is exact, however large the
    rest of C. Source: Demmel 1989 (LAPACK working note 14) for the scaling, Higham and Mary 2019
    (SIAM J. Sci. Comput. 41(5)) for √n.
    """
    worst = int((pivots / diagonal).argmin())
    require_positive(
        float(pivots[worst]),
        float(diagonal[worst]),
        n=len(diagonal) ** 0.5,
        eps=torch.finfo(diagonal.dtype).eps,
        what="C + diag(w) + λI",
    )
