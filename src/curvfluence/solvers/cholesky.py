"""A Cholesky factor that takes the matrix's own memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.linalg import lapack
from torch import Tensor

from curvfluence.errors import SingularError


@dataclass(frozen=True, eq=False)
class Cholesky:
    """A = L Lᵀ for a positive definite A [n, n] of which the lower triangle was given.

    On the CPU LAPACK's potrf overwrites A, so n² numbers are held once: at n = 40,500 in float32
    that is 6.6 GB, and a second copy would not fit a desk. Elsewhere torch keeps a copy.
    """

    factor: Tensor

    @staticmethod
    def of(matrix: Tensor, what: str) -> Cholesky:
        """Factor a contiguous `matrix` in place. Errors: `SingularError` names `what`."""
        if matrix.device.type != "cpu":
            factor, code = torch.linalg.cholesky_ex(matrix)
            info = int(code)
        else:
            # Row-major lower is column-major upper: LAPACK sees Aᵀ without a copy.
            columns = matrix.numpy().T
            _, info = _routine("potrf", matrix.dtype)(columns, lower=0, overwrite_a=1, clean=0)
            factor = matrix
        if info:
            raise SingularError(
                f"{what} is not positive definite: its leading minor of order {info} of "
                f"{len(matrix)} is not. Use a larger damping"
            )
        return Cholesky(factor)

    def solve(self, b_qn: Tensor) -> Tensor:
        """A⁻¹ b for each row of b [Q, n]."""
        if self.factor.device.type != "cpu":
            return torch.cholesky_solve(b_qn.T, self.factor).T
        rows = b_qn.contiguous().numpy().copy().T  # [n, Q], column-major
        x, info = _routine("potrs", self.factor.dtype)(
            self.factor.numpy().T, rows, lower=0, overwrite_b=1
        )
        assert info == 0
        return torch.from_numpy(x.T)


def _routine(name: str, dtype: torch.dtype) -> Any:
    return getattr(lapack, ("s" if dtype == torch.float32 else "d") + name)
