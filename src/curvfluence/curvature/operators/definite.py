"""What a damped matrix must be to be inverted."""

from __future__ import annotations

import torch
from torch import Tensor

from curvfluence.errors import SingularError


def require_positive(smallest: float, largest: float, *, n: int, eps: float, what: str) -> None:
    """Raise `SingularError` where the smallest eigenvalue cannot be told from zero."""
    floor = max(0.0, n * eps * abs(largest))
    if not smallest > floor:  # also where it is NaN
        raise SingularError(_said(what, smallest, largest, floor))


def _said(what: str, smallest: float, largest: float, floor: float) -> str:
    more = f": {floor - smallest:.1g} more would do" if floor > smallest else ""
    return (
        f"{what} cannot be inverted: its smallest eigenvalue (or pivot) is {smallest:.3g} next to "
        f"{largest:.3g}. Use a larger damping{more}, or problem.to(torch.float64)"
    )


def require_definite_eigenvalues(values: Tensor) -> None:
    """Refuse damped eigenvalues of which the smallest cannot be told from zero.

    Inverted one by one, so nothing is lost to conditioning: eigenvalues of a symmetric matrix come
    with an error of a few eps of the largest.
    """
    eps = torch.finfo(values.dtype).eps
    smallest, largest = float(values.min()), float(values.max())
    require_positive(smallest, largest, n=10, eps=eps, what="the damped eigenvalues")
