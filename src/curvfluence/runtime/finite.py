"""Whether numbers are finite."""

from __future__ import annotations

from torch import Tensor


def all_finite(x: Tensor) -> bool:
    """Whether every number is: where one is not, their sum is not, which is quicker to look
    at. A look at each is left for a sum that overflows."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())
