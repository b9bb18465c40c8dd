"""matrix⁻¹ v by a Cholesky factor, refused where rounding would show."""

from __future__ import annotations

import torch
from torch import Tensor

from curvfluence.errors import SingularError

TRUSTED = 0.05  # of a solution, that a step of refinement may move
CHECKED = 8  # solutions that are checked, spread over all


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
