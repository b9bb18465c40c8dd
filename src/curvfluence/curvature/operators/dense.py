"""Operators without structure of their own: diagonal and dense."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvfluence.curvature.curvature import Operator, require_positive
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
    """matrix⁻¹ v for v [..., n] and a positive definite matrix.

    Errors: `SingularError` where a factor cannot be had, or where a step of refinement would move
    a solution by more than `TRUSTED` of itself: about the relative error that rounding made.
    """
    n = len(matrix)
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise SingularError(
            f"C + diag(w) + λI is not positive definite (its leading minor of order {int(info)} of "
            f"{n} is not). Use a larger damping, Relative(0.1) for a start"
        )
    v_rn = v.reshape(-1, n)
    x_rn = torch.cholesky_solve(v_rn.T, factor).T
    _require_accuracy(matrix, factor, v_rn, x_rn)
    return x_rn.reshape(v.shape)


TRUSTED = 0.05
CHECKED = 8  # solutions that are checked, spread over all


def _require_accuracy(matrix: Tensor, factor: Tensor, v_rn: Tensor, x_rn: Tensor) -> None:
    # A condition number would say less: it is a bound, and one that a row of C which is zero, and
    # so solved exactly, puts far off.
    rows = torch.arange(0, len(v_rn), max(1, -(-len(v_rn) // CHECKED)))
    v, x = v_rn[rows], x_rn[rows]
    step = torch.cholesky_solve((v - x @ matrix).T, factor).T
    size = x.double().norm(dim=1)
    moved = torch.where(size > 0, step.double().norm(dim=1) / size, 0.0)
    error = float(moved.max()) if len(moved) else 0.0
    if not error <= TRUSTED:  # also where it is NaN
        raise SingularError(
            f"C + diag(w) + λI cannot be inverted in {str(matrix.dtype).removeprefix('torch.')}: "
            f"rounding moves a solution by about {error:.0%} of itself. Use a larger damping, "
            "Relative(0.1) for a start, or float64"
        )
